// The C ABI of the CUDA library: raw device pointers and a stream in, an error code out. Nothing
// here needs torch or Python, so that the library builds without either.
//
// Every function that launches returns RSD_SUCCESS, a negative code of its own, or the positive
// cudaError_t that the runtime gave. Launches are asynchronous on `stream` and allocate nothing, so
// they may be captured in a CUDA graph.

#ifndef RSD_KERNELS_H_
#define RSD_KERNELS_H_

#include <stdint.h>

// Raised with every change to a signature or to the meaning of an argument; the loader refuses
// others.
#define RSD_ABI_VERSION 1

#define RSD_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum {
    RSD_SUCCESS = 0,
    RSD_ERROR_DTYPE = -1,  // not one of RSD_DTYPE_*
    RSD_ERROR_SHAPE = -2,  // a size is out of the range the function states
    RSD_ERROR_ALIGNMENT =
        -3,  // a pointer or row stride is not a multiple of 16 bytes where it must be
    RSD_ERROR_POINTER = -4,  // a required pointer is null
};

enum {
    RSD_DTYPE_BFLOAT16 = 0,
    RSD_DTYPE_FLOAT16 = 1,
    RSD_DTYPE_FLOAT32 = 2,
};

RSD_API int32_t rsd_abi_version(void);

// Hash of the source files the library was built from, as the build computed it.
RSD_API const char* rsd_source_hash(void);

// Text for any code a function of this library returned. The pointer stays valid.
RSD_API const char* rsd_error_string(int32_t code);

// y[r, n] = sum_k x[r, k] * weight[n, k] (+ bias[n]) for 0 to 4 rows, summed in float32.
//
//   y       [num_rows, num_outputs], rows y_stride elements apart
//   x       [num_rows, num_inputs], rows x_stride apart, each row 16-byte aligned
//   weight  [num_outputs, num_inputs], rows weight_stride apart, each row 16-byte aligned
//   bias    [num_outputs] or null
//
// All of one dtype; y overlaps none of the others. num_inputs is a multiple of 16 bytes' worth of
// elements. A row's result has the same bits for every num_rows: the order of the sum depends on
// the weight's shape and the device only.
//
// overlap_previous = 1 lets the kernel start while the one before it on the stream still runs
// (programmatic dependent launch, sm_90 and later; ignored elsewhere). It then fetches weights
// first and waits before it reads x or writes y: weight and bias must not be written by kernels
// still running.
RSD_API int32_t rsd_decode_projection(void* y, const void* x, const void* weight, const void* bias,
                                      int64_t num_rows, int64_t num_outputs, int64_t num_inputs,
                                      int64_t y_stride, int64_t x_stride, int64_t weight_stride,
                                      int32_t dtype, int32_t overlap_previous, int32_t device,
                                      void* stream);

#ifdef __cplusplus
}
#endif

#endif  // RSD_KERNELS_H_
