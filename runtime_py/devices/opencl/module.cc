#include "module.h"

#include <tvm/ffi/function.h>

#include <map>
#include <mutex>
#include <optional>

#include "../shared/environment.h"
#include "../shared/launch.h"
#include "../shared/module_bytes.h"

namespace blockffn::opencl {
namespace {

namespace ffi = tvm::ffi;

// One kernel: its arguments, and its compiled form on every device it ran on.
class Kernel {
 public:
  Kernel(const KernelInfo& info, std::string source)
      : name_(info.name), source_(std::move(source)), arguments_(info.arguments), read_launch_("OpenCL", info) {}

  Kernel(const Kernel&) = delete;

  // Enqueues one launch on the thread's device. `values`: the arguments, then one number per launch tag.
  void Launch(ffi::PackedArgs values) {
    const LaunchExtents launch = read_launch_(values);
    const size_t global[] = {launch[0] * launch[3], launch[1] * launch[4], launch[2] * launch[5]};
    if (global[0] * global[1] * global[2] == 0) return;  // OpenCL 1.2 refuses empty launches
    Device& device = CurrentDevice();
    std::lock_guard<std::mutex> lock(mutex_);  // a kernel object keeps its arguments: one caller at a time
    cl_kernel kernel = On(device);
    const size_t count = arguments_.size();
    for (size_t i = 0; i < count; ++i) SetArgument(kernel, i, values[i]);
    if (launch[kDynamicMemory] > 0) {
      Check(clSetKernelArg(kernel, count, launch[kDynamicMemory], nullptr), What("setting the local memory of"));
    }
    const cl_int code =
        clEnqueueNDRangeKernel(device.queue(), kernel, 3, nullptr, global, &launch[3], 0, nullptr, nullptr);
    if (code != CL_SUCCESS) Check(code, What("launching"), Limits(device, kernel, launch));
    ++Counters::Get().launches;
    device.Launched(name_);
    if (WaitsBehindLaunches()) Check(clFinish(device.queue()), What("running"));
  }

 private:
  void SetArgument(cl_kernel kernel, size_t index, const ffi::AnyView& value) {
    const DLDataType type = arguments_[index];
    cl_int code;
    if (type.code == kDLOpaqueHandle) {
      const auto buffer = static_cast<cl_mem>(value.cast<void*>());
      code = clSetKernelArg(kernel, index, sizeof buffer, &buffer);
    } else if (const auto bits = read_launch_.NumberBits(index, value)) {
      code = clSetKernelArg(kernel, index, (type.bits + 7) / 8, &*bits);  // little-endian
    } else {
      code = CL_INVALID_ARG_VALUE;
    }
    if (code != CL_SUCCESS) Check(code, What("setting argument " + std::to_string(index) + " of"));
  }

  cl_kernel On(Device& device) {
    Object<cl_kernel>& kernel = compiled_[&device];
    if (!kernel) {
      const Object<cl_program> program = Program(device);
      cl_int code;
      Object<cl_kernel> made(clCreateKernel(program.get(), name_.c_str(), &code));
      Check(code, What("creating"));
      kernel = std::move(made);
    }
    return kernel.get();
  }

  Object<cl_program> Program(Device& device) {
    const std::string key = device.PlatformText(CL_PLATFORM_VERSION) + "\n" + device.Text(CL_DEVICE_NAME) + "\n" +
                            device.Text(CL_DEVICE_VERSION) + "\n" + device.Text(CL_DRIVER_VERSION) + "\n" + source_;
    const auto load = ffi::Function::GetGlobal("blockffn.opencl.load_binary");
    const auto store = ffi::Function::GetGlobal("blockffn.opencl.store_binary");
    if (load) {
      const auto binary = (*load)(ffi::Bytes(key)).cast<ffi::Optional<ffi::Bytes>>();
      if (binary) {
        if (Object<cl_program> program = FromBinary(device, *binary)) return program;
      }
    }
    Object<cl_program> program = FromSource(device);
    if (store) (*store)(ffi::Bytes(key), Binary(program.get()));
    return program;
  }

  Object<cl_program> FromSource(Device& device) {
    const char* text = source_.c_str();
    cl_int code;
    Object<cl_program> program(clCreateProgramWithSource(device.context(), 1, &text, nullptr, &code));
    Check(code, What("reading the source of"));
    code = clBuildProgram(program.get(), 1, &device.id, "", nullptr, nullptr);
    if (code != CL_SUCCESS) {
      size_t size = 0;
      clGetProgramBuildInfo(program.get(), device.id, CL_PROGRAM_BUILD_LOG, 0, nullptr, &size);
      std::string log(size, '\0');
      clGetProgramBuildInfo(program.get(), device.id, CL_PROGRAM_BUILD_LOG, size, log.data(), nullptr);
      Check(code, What("compiling") + " for " + device.Text(CL_DEVICE_NAME), std::string("\n") + log.c_str());
    }
    ++Counters::Get().compilations;
    return program;
  }

  // None when the driver does not take it: it changed without a new version.
  Object<cl_program> FromBinary(Device& device, const ffi::Bytes& binary) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(binary.data());
    const size_t size = binary.size();
    cl_int code, status;
    Object<cl_program> program(
        clCreateProgramWithBinary(device.context(), 1, &device.id, &size, &bytes, &status, &code));
    if (code == CL_SUCCESS) code = clBuildProgram(program.get(), 1, &device.id, "", nullptr, nullptr);
    return code == CL_SUCCESS ? std::move(program) : Object<cl_program>();
  }

  ffi::Bytes Binary(cl_program program) {
    size_t size = 0;
    Check(clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, nullptr), What("saving"));
    std::string binary(size, '\0');
    auto* bytes = reinterpret_cast<unsigned char*>(binary.data());
    Check(clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof bytes, &bytes, nullptr), What("saving"));
    return ffi::Bytes(std::move(binary));
  }

  std::string What(const std::string& doing) const { return "OpenCL: " + doing + " kernel " + name_; }

  // What was asked for and what the device has, for the message of a refused launch.
  static std::string Limits(Device& device, cl_kernel kernel, const LaunchExtents& launch) {
    size_t group = 0;
    cl_ulong local = 0;
    clGetKernelWorkGroupInfo(kernel, device.id, CL_KERNEL_WORK_GROUP_SIZE, sizeof group, &group, nullptr);
    clGetKernelWorkGroupInfo(kernel, device.id, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local, &local, nullptr);
    return "; " + LaunchReader::Triple(launch, 0) + " work-groups of " + LaunchReader::Triple(launch, 3) +
           " work-items (" + device.Text(CL_DEVICE_NAME) + " runs up to " + std::to_string(group) +
           " of this kernel), " + std::to_string(local) +
           " bytes of local memory (of " + std::to_string(device.Info<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE)) + ")";
  }

  const std::string name_, source_;
  const std::vector<DLDataType> arguments_;
  const LaunchReader read_launch_;
  std::mutex mutex_;
  std::map<Device*, Object<cl_kernel>> compiled_;
};

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(const ffi::Bytes& bytes) : bytes_(bytes) {
    ModuleReader reader("OpenCL", bytes);
    reader.String();  // the format: "cl"
    const std::vector<KernelInfo> infos = ReadKernelInfos(reader);
    source_ = reader.String();
    for (const KernelInfo& info : infos) {
      kernels_[info.name] = std::make_shared<Kernel>(info, SourceOf(info.name));
    }
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return source_; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = kernels_.find(name);
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked(
        [kernel = found->second](ffi::PackedArgs values, ffi::Any*) { kernel->Launch(values); });
  }

 private:
  // TVM puts a line with its name before every kernel; each is a program of its own, compiled when it is needed.
  std::string SourceOf(const std::string& name) const {
    const std::string mark = "// Function: ", line = mark + name + "\n";
    const size_t start = source_.find(line);
    if (start == std::string::npos) TVM_FFI_THROW(ValueError) << "OpenCL: the module lacks the source of " << name;
    return source_.substr(start, source_.find(mark, start + line.size()) - start);
  }

  const ffi::Bytes bytes_;
  std::string source_;
  std::map<std::string, std::shared_ptr<Kernel>> kernels_;  // shared: functions may outlive the module
};

}  // namespace

ffi::Module LoadModule(const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<OpenCLModule>(bytes)); }

}  // namespace blockffn::opencl
