#include "device.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace blockffn::opencl {
namespace {

constexpr size_t kStagedBytes = 1 << 20;  // larger pieces are written from where they are

std::vector<std::unique_ptr<Device>>* FindDevices() {
  auto* found = new std::vector<std::unique_ptr<Device>>;
  cl_uint count = 0;
  if (clGetPlatformIDs(0, nullptr, &count) != CL_SUCCESS) return found;  // without a driver: not an error
  std::vector<cl_platform_id> platforms(count);
  Check(clGetPlatformIDs(count, platforms.data(), nullptr), "OpenCL: clGetPlatformIDs");
  for (cl_device_type type : {CL_DEVICE_TYPE_GPU, CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_CPU}) {
    for (cl_platform_id platform : platforms) {
      if (clGetDeviceIDs(platform, type, 0, nullptr, &count) != CL_SUCCESS) continue;  // none of this type
      std::vector<cl_device_id> ids(count);
      Check(clGetDeviceIDs(platform, type, count, ids.data(), nullptr), "OpenCL: clGetDeviceIDs");
      for (cl_device_id id : ids) found->push_back(std::make_unique<Device>(platform, id, type));
    }
  }
  return found;
}

// A property of variable length, through one of OpenCL's clGet...Info.
template <class Get, class Object>
std::string TextOf(Get get, Object object, cl_uint what) {
  size_t size = 0;
  Check(get(object, what, 0, nullptr, &size), "OpenCL: clGet...Info");
  std::string text(size, '\0');
  Check(get(object, what, size, text.data(), nullptr), "OpenCL: clGet...Info");
  return text.c_str();  // up to the terminating zero
}

}  // namespace

const std::vector<std::unique_ptr<Device>>& Device::All() {
  static const auto* devices = FindDevices();
  return *devices;
}

Device& Device::Get(int index) {
  if (index < 0 || static_cast<size_t>(index) >= All().size()) {
    TVM_FFI_THROW(RuntimeError) << "OpenCL: there is no device " << index << ", found " << All().size();
  }
  return *All()[index];
}

void Device::Open() {
  std::call_once(opened_, [this] {
    cl_int code;
    cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, reinterpret_cast<cl_context_properties>(platform), 0};
    Object<cl_context> context(clCreateContext(properties, 1, &id, nullptr, nullptr, &code));
    Check(code, "OpenCL: clCreateContext for " + Text(CL_DEVICE_NAME));
    Object<cl_command_queue> queue(clCreateCommandQueue(context.get(), id, 0, &code));
    Check(code, "OpenCL: clCreateCommandQueue for " + Text(CL_DEVICE_NAME));
    context_ = std::move(context);
    queue_ = std::move(queue);
  });
}

cl_context Device::context() {
  Open();
  return context_.get();
}

cl_command_queue Device::queue() {
  Open();
  return queue_.get();
}

std::string Device::Text(cl_device_info what) const { return TextOf(clGetDeviceInfo, id, what); }
std::string Device::PlatformText(cl_platform_info what) const { return TextOf(clGetPlatformInfo, platform, what); }

tvm::ffi::Any Device::Attribute(tvm::runtime::DeviceAttrKind kind) const {
  using Kind = tvm::runtime::DeviceAttrKind;
  switch (kind) {
    case Kind::kMaxThreadsPerBlock:
      return static_cast<int64_t>(Info<size_t>(CL_DEVICE_MAX_WORK_GROUP_SIZE));
    case Kind::kMaxSharedMemoryPerBlock:
      return static_cast<int64_t>(Info<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE));
    case Kind::kDeviceName:
      return tvm::ffi::String(Text(CL_DEVICE_NAME));
    case Kind::kMaxClockRate:  // in kHz, as TVM's own runtimes tell it
      return static_cast<int64_t>(1000) * Info<cl_uint>(CL_DEVICE_MAX_CLOCK_FREQUENCY);
    case Kind::kMultiProcessorCount:
      return static_cast<int64_t>(Info<cl_uint>(CL_DEVICE_MAX_COMPUTE_UNITS));
    case Kind::kDriverVersion:
      return tvm::ffi::String(Text(CL_DRIVER_VERSION));
    case Kind::kTotalGlobalMemory:
      return static_cast<int64_t>(Info<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE));
    default:
      return nullptr;
  }
}

cl_mem Device::Allocate(size_t bytes) {
  const Room room{"OpenCL", Text(CL_DEVICE_NAME), Info<cl_ulong>(CL_DEVICE_MAX_MEM_ALLOC_SIZE),
                  Info<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE)};
  std::lock_guard<std::mutex> lock(memory_mutex_);
  return buffers_.Allocate(bytes, room, [this](size_t size) {
    cl_int code;
    Object<cl_mem> buffer(clCreateBuffer(context(), CL_MEM_READ_WRITE, size, nullptr, &code));
    Check(code, "OpenCL: clCreateBuffer of " + std::to_string(size) + " bytes");
    return buffer;
  });
}

void Device::Free(cl_mem buffer) {
  std::lock_guard<std::mutex> lock(memory_mutex_);
  buffers_.Free(buffer);
}

int64_t Device::memory_in_use() {
  std::lock_guard<std::mutex> lock(memory_mutex_);
  return buffers_.in_use();
}

int64_t Device::memory_kept() {
  std::lock_guard<std::mutex> lock(memory_mutex_);
  return buffers_.kept();
}

void Device::Write(const void* from, cl_mem to, size_t offset, size_t bytes) {
  if (bytes > kStagedBytes) {
    CheckWaited(clEnqueueWriteBuffer(queue(), to, CL_TRUE, offset, bytes, from, 0, nullptr, nullptr),
                "OpenCL: clEnqueueWriteBuffer");
    return;
  }
  auto copy = std::make_unique<char[]>(bytes);
  std::memcpy(copy.get(), from, bytes);
  {
    std::lock_guard<std::mutex> lock(staged_mutex_);
    Staged& staged = staged_.emplace_back(Staged{std::move(copy), {}});  // before the driver knows of it
    cl_event done = nullptr;
    const cl_int code =
        clEnqueueWriteBuffer(queue(), to, CL_FALSE, offset, bytes, staged.bytes.get(), 0, nullptr, &done);
    staged.done = Object<cl_event>(done);
    if (code != CL_SUCCESS) staged_.pop_back();
    Check(code, "OpenCL: clEnqueueWriteBuffer");
  }
  Check(clFlush(queue()), "OpenCL: clFlush");
  ReleaseWritten();
}

void Device::Read(cl_mem from, size_t offset, void* to, size_t bytes) {
  CheckWaited(clEnqueueReadBuffer(queue(), from, CL_TRUE, offset, bytes, to, 0, nullptr, nullptr),
              "OpenCL: clEnqueueReadBuffer");
  ReleaseWritten();
}

void Device::Copy(cl_mem from, size_t from_offset, cl_mem to, size_t to_offset, size_t bytes) {
  Check(clEnqueueCopyBuffer(queue(), from, to, from_offset, to_offset, bytes, 0, nullptr, nullptr),
        "OpenCL: clEnqueueCopyBuffer");
}

void Device::Finish() {
  CheckWaited(clFinish(queue()), "OpenCL: clFinish");
  ReleaseWritten();
}

void Device::Launched(const std::string& kernel) {
  std::lock_guard<std::mutex> lock(launched_mutex_);
  launched_[launches_++ % launched_.size()] = kernel;
}

// `code` is of a call that waited for everything enqueued before. Throws with the kernels among that unless it is
// CL_SUCCESS.
void Device::CheckWaited(cl_int code, const std::string& what) {
  std::lock_guard<std::mutex> lock(launched_mutex_);
  const size_t count = std::exchange(launches_, 0), shown = std::min(count, launched_.size());
  if (code == CL_SUCCESS || count == 0) return Check(code, what);
  std::string names;
  for (size_t i = count - shown; i < count; ++i) names += " " + launched_[i % launched_.size()];
  Check(code, what,
        "; one of the kernels before it may be the cause, the last of " + std::to_string(count) + ":" + names +
            "; BLOCKFFN_SYNC=1 waits behind every launch and names the one that fails");
}

// Frees the copies whose writes are done: the queue is in order, so those at the front.
void Device::ReleaseWritten() {
  std::lock_guard<std::mutex> lock(staged_mutex_);
  while (!staged_.empty()) {
    cl_int status = CL_COMPLETE;
    const cl_event done = staged_.front().done.get();
    Check(clGetEventInfo(done, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, nullptr),
          "OpenCL: clGetEventInfo");
    if (status > CL_COMPLETE) return;  // waiting or running
    staged_.pop_front();
    if (status != CL_COMPLETE) CheckWaited(status, "OpenCL: writing a buffer");
  }
}

}  // namespace blockffn::opencl
