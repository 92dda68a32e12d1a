// Launches on a given device, with or without overlap with the previous kernel of the stream
// (programmatic dependent launch).

#pragma once

#include <cuda_runtime.h>

namespace rsd {

// Allows the next kernel of the stream to start now. It still waits for this one to end before it
// touches anything that this one writes.
__device__ __forceinline__ void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when the previous kernel has ended and its writes are visible; without overlap, at once.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Makes `device` current for a scope: on this thread torch may have made another one current.
class DeviceScope {
  public:
    explicit DeviceScope(int device) {
        status_ = cudaGetDevice(&previous_);
        if (status_ == cudaSuccess && previous_ != device) {
            status_ = cudaSetDevice(device);
            changed_ = status_ == cudaSuccess;
        }
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

    cudaError_t status() const { return status_; }

  private:
    cudaError_t status_ = cudaSuccess;
    int previous_ = 0;
    bool changed_ = false;
};

// Code compiled for a target before sm_90 contains no wait, even when the driver translates it for
// a newer device: if launched early, it would read its input too soon.
template <typename... Arguments>
bool waits_for_previous_kernel(void (*kernel)(Arguments...)) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, bool overlap_previous,
                   cudaStream_t stream, Arguments... arguments) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap_previous && waits_for_previous_kernel(kernel) ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace rsd
