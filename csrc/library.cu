// What the loader checks before it trusts the library, and the texts of the error codes.

#include <cuda_runtime_api.h>

#include "rsd_kernels.h"

#ifndef RSD_SOURCE_HASH
#error "RSD_SOURCE_HASH must be defined by the build: the loader compares it with the sources"
#endif

int32_t rsd_abi_version(void) { return RSD_ABI_VERSION; }

const char* rsd_source_hash(void) { return RSD_SOURCE_HASH; }

const char* rsd_error_string(int32_t code) {
    switch (code) {
        case RSD_SUCCESS: return "success";
        case RSD_ERROR_DTYPE: return "dtype is not one of the library's";
        case RSD_ERROR_SHAPE: return "a size is out of range";
        case RSD_ERROR_ALIGNMENT: return "a pointer or row stride is not 16-byte aligned";
        case RSD_ERROR_POINTER: return "a required pointer is null";
        default: break;
    }
    return code > 0 ? cudaGetErrorString(static_cast<cudaError_t>(code)) : "unknown error code";
}
