// The C ABI of the CUDA library: raw device pointers and a stream in, an error code out. It needs
// neither torch nor Python, so the library builds without either.
//
// Every function that launches returns RSD_SUCCESS, one of the negative codes below, or the
// positive cudaError_t of the runtime. Launches are asynchronous on `stream` and allocate nothing,
// so they can be captured in a CUDA graph.

#ifndef RSD_KERNELS_H_
#define RSD_KERNELS_H_

#include <stdint.h>

// Goes up with every change to a signature or to the meaning of an argument; the loader refuses any
// other version.
#define RSD_ABI_VERSION 2

#define RSD_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum {
    RSD_SUCCESS = 0,
    RSD_ERROR_DTYPE = -1,  // not one of RSD_DTYPE_*
    RSD_ERROR_SHAPE = -2,  // a size is out of the range the function states
    // a pointer or row stride is not a multiple of 16 bytes where it must be
    RSD_ERROR_ALIGNMENT = -3,
    RSD_ERROR_POINTER = -4,  // a required pointer is null
};

enum {
    RSD_DTYPE_BFLOAT16 = 0,
    RSD_DTYPE_FLOAT16 = 1,
    RSD_DTYPE_FLOAT32 = 2,
};

RSD_API int32_t rsd_abi_version(void);

// Hash, computed by the build, of the source files that the library was built from.
RSD_API const char* rsd_source_hash(void);

// Text for any code that a function of this library returned. The pointer stays valid.
RSD_API const char* rsd_error_string(int32_t code);

// Of RsdProjection.flags.
enum {
    RSD_PROJECTION_GATED = 1,
    RSD_PROJECTION_FLOAT32_OUT = 2,  // y is float32, whatever the dtype of the others
    RSD_PROJECTION_OVERLAP_PREVIOUS = 4,
};

// s[r, n] = sum_k h[r, k] * weight[n, k] (+ bias[n]), where h is x, or with a norm
// x / sqrt(mean(x^2) + eps) * norm. y is s, or with RSD_PROJECTION_GATED silu(s[r, n]) *
// s[r, num_outputs + n], plus the residual where there is one.
typedef struct {
    void* y;               // [num_rows, num_outputs]
    const void* x;         // [num_rows, num_inputs], each row 16-byte aligned
    const void* weight;    // [num_outputs, num_inputs], each row 16-byte aligned; gated: twice the
                           // rows, first those of the gate
    const void* bias;      // [rows of weight], or null
    const void* norm;      // [num_inputs], 16-byte aligned, or null
    const void* residual;  // [num_rows, num_outputs], or null
    int64_t num_rows;      // 0 to 4
    int64_t num_outputs;
    int64_t num_inputs;  // a multiple of 16 bytes' worth of elements
    int64_t y_stride;    // elements from a row to the next; so are the other strides
    int64_t x_stride;
    int64_t weight_stride;
    int64_t residual_stride;
    float eps;
    int32_t dtype;  // RSD_DTYPE_* of everything but a float32 y
    int32_t flags;  // RSD_PROJECTION_*
} RsdProjection;

// One launch, summed in float32 and rounded once. y may be the residual itself, and overlaps
// nothing else. A row's result has the same bits for every num_rows: the order of its sum depends
// only on the shape of the weight, on RSD_PROJECTION_GATED and on the device.
//
// RSD_PROJECTION_OVERLAP_PREVIOUS lets the kernel start while the one before it on the stream still
// runs (programmatic dependent launch, sm_90 and later; ignored elsewhere). It then fetches weights
// first and waits before it reads x, norm, bias or residual or writes y: `weight` must not be
// written by a kernel that is still running.
RSD_API int32_t rsd_decode_projection(const RsdProjection* projection, int32_t device,
                                      void* stream);

#ifdef __cplusplus
}
#endif

#endif  // RSD_KERNELS_H_
