#include "instance.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "../shared/environment.h"
#include "errors.h"

namespace blockffn::vulkan {
namespace {

constexpr size_t kKept = 1000;  // messages
constexpr const char* kLayer = "VK_LAYER_KHRONOS_validation";

bool HasValidation() {
  uint32_t count = 0;
  Check(vkEnumerateInstanceLayerProperties(&count, nullptr), "Vulkan: vkEnumerateInstanceLayerProperties");
  std::vector<VkLayerProperties> layers(count);
  Check(vkEnumerateInstanceLayerProperties(&count, layers.data()), "Vulkan: vkEnumerateInstanceLayerProperties");
  return std::any_of(layers.begin(), layers.end(),
                     [](const VkLayerProperties& layer) { return std::strcmp(layer.layerName, kLayer) == 0; });
}

VKAPI_ATTR VkBool32 VKAPI_CALL OnMessage(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                         const VkDebugUtilsMessengerCallbackDataEXT* data, void* instance) {
  static_cast<Instance*>(instance)->Report(data->pMessage);
  return VK_FALSE;  // go on as without validation
}

// The order of devices: lower is first.
int Rank(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return 2;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return 3;
    default:
      return 4;
  }
}

VkPhysicalDeviceProperties PropertiesOf(VkPhysicalDevice device) {
  VkPhysicalDeviceProperties properties;
  vkGetPhysicalDeviceProperties(device, &properties);
  return properties;
}

}  // namespace

int ComputeFamily(VkPhysicalDevice device) {
  uint32_t count = 0;
  vkGetPhysicalDeviceQueueFamilyProperties(device, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vkGetPhysicalDeviceQueueFamilyProperties(device, &count, families.data());
  for (uint32_t family = 0; family < count; ++family) {
    if (families[family].queueFlags & VK_QUEUE_COMPUTE_BIT) return static_cast<int>(family);
  }
  return -1;
}

std::string VersionText(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

Instance& Instance::Get() {
  static auto* instance = new Instance();  // drivers end with the process
  return *instance;
}

Instance::Instance() {
  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.pApplicationName = "blockffn-mlc";
  application.apiVersion = VK_API_VERSION_1_1;
  VkInstanceCreateInfo info{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  info.pApplicationInfo = &application;

  const char* extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME};
  VkDebugUtilsMessengerCreateInfoEXT messenger{VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT};
  messenger.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  messenger.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  messenger.pfnUserCallback = OnMessage;
  messenger.pUserData = this;
  const VkValidationFeatureEnableEXT enabled = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  VkValidationFeaturesEXT features{VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT, &messenger};
  features.enabledValidationFeatureCount = 1;
  features.pEnabledValidationFeatures = &enabled;
  const bool validates = IsSet("BLOCKFFN_VULKAN_VALIDATION");
  if (validates) {
    if (!HasValidation()) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: BLOCKFFN_VULKAN_VALIDATION is set and " << kLayer
                                  << " is not installed; install it, for example with: apt install "
                                     "vulkan-validationlayers, or unset the variable";
    }
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &kLayer;
    info.enabledExtensionCount = 2;
    info.ppEnabledExtensionNames = extensions;
    info.pNext = &features;
  }
  const VkResult result = vkCreateInstance(&info, nullptr, &instance_);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER) return;  // none is installed
  Check(result, "Vulkan: vkCreateInstance");
  if (validates) {
    const auto create = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(
        vkGetInstanceProcAddr(instance_, "vkCreateDebugUtilsMessengerEXT"));
    VkDebugUtilsMessengerEXT made;
    Check(create(instance_, &messenger, nullptr, &made), "Vulkan: vkCreateDebugUtilsMessengerEXT");
  }
}

std::vector<VkPhysicalDevice> Instance::PhysicalDevices() const {
  std::vector<VkPhysicalDevice> devices;
  if (instance_ == VK_NULL_HANDLE) return devices;
  uint32_t count = 0;
  const auto list = [&](VkPhysicalDevice* found) {
    Check(vkEnumeratePhysicalDevices(instance_, &count, found), "Vulkan: vkEnumeratePhysicalDevices",
          "; no installed driver works here, vulkaninfo (apt install vulkan-tools) may say why");
  };
  list(nullptr);
  devices.resize(count);
  list(devices.data());
  std::stable_sort(devices.begin(), devices.end(), [](VkPhysicalDevice one, VkPhysicalDevice other) {
    return Rank(PropertiesOf(one).deviceType) < Rank(PropertiesOf(other).deviceType);
  });
  return devices;
}

std::vector<std::string> Instance::ValidationMessages() {
  std::lock_guard<std::mutex> lock(mutex_);
  return messages_;
}

void Instance::Report(const char* message) {
  std::fprintf(stderr, "Vulkan validation: %s\n", message);
  std::lock_guard<std::mutex> lock(mutex_);
  if (messages_.size() < kKept) messages_.emplace_back(message);
}

}  // namespace blockffn::vulkan
