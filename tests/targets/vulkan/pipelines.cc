// Makes a compute pipeline of each shader: arguments are pairs of a SPIR-V file and its entry point. Prints the driver's
// device, then a line per shader. For drivers that compile without their hardware.
#include <vulkan/vulkan.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

static void Check(VkResult result, const char* what) {
  if (result == VK_SUCCESS) return;
  std::fprintf(stderr, "%s: error %d\n", what, result);
  std::exit(1);
}

int main(int count, char** arguments) {
  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.apiVersion = VK_API_VERSION_1_2;
  VkInstanceCreateInfo instance_info{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  instance_info.pApplicationInfo = &application;
  VkInstance instance;
  Check(vkCreateInstance(&instance_info, nullptr, &instance), "vkCreateInstance");
  uint32_t devices = 1;
  VkPhysicalDevice physical = VK_NULL_HANDLE;
  vkEnumeratePhysicalDevices(instance, &devices, &physical);
  VkPhysicalDeviceProperties properties;
  vkGetPhysicalDeviceProperties(physical, &properties);
  std::printf("%s\n", properties.deviceName);

  VkPhysicalDeviceVulkan12Features features12{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
  VkPhysicalDeviceVulkan11Features features11{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, &features12};
  VkPhysicalDeviceFeatures2 features{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, &features11};
  vkGetPhysicalDeviceFeatures2(physical, &features);
  features.features.robustBufferAccess = VK_FALSE;
  float priority = 1;
  VkDeviceQueueCreateInfo queue{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, nullptr, 0, 0, 1, &priority};
  VkDeviceCreateInfo device_info{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, &features, 0, 1, &queue};
  VkDevice device;
  Check(vkCreateDevice(physical, &device_info, nullptr, &device), "vkCreateDevice");

  std::vector<VkDescriptorSetLayoutBinding> bindings;
  for (uint32_t i = 0; i < 16; ++i)
    bindings.push_back({i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  VkDescriptorSetLayoutCreateInfo set_info{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, nullptr, 0,
                                           static_cast<uint32_t>(bindings.size()), bindings.data()};
  VkDescriptorSetLayout set;
  Check(vkCreateDescriptorSetLayout(device, &set_info, nullptr, &set), "vkCreateDescriptorSetLayout");
  VkPushConstantRange constants{VK_SHADER_STAGE_COMPUTE_BIT, 0, 128};
  VkPipelineLayoutCreateInfo layout_info{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, nullptr, 0, 1, &set, 1,
                                         &constants};
  VkPipelineLayout layout;
  Check(vkCreatePipelineLayout(device, &layout_info, nullptr, &layout), "vkCreatePipelineLayout");

  for (int i = 1; i + 1 < count; i += 2) {
    std::ifstream file(arguments[i], std::ios::binary);
    std::vector<char> code{std::istreambuf_iterator<char>(file), {}};
    VkShaderModuleCreateInfo shader_info{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, nullptr, 0, code.size(),
                                         reinterpret_cast<const uint32_t*>(code.data())};
    VkComputePipelineCreateInfo info{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
    info.stage = {VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO};
    info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    info.stage.pName = arguments[i + 1];
    info.layout = layout;
    VkPipeline pipeline;
    std::fprintf(stderr, "kernel %s\n", arguments[i + 1]);
    Check(vkCreateShaderModule(device, &shader_info, nullptr, &info.stage.module), "vkCreateShaderModule");
    Check(vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &info, nullptr, &pipeline), "vkCreateComputePipelines");
    std::printf("%s\n", arguments[i + 1]);
  }
}
