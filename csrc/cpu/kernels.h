// The kernels of one instruction set: a table of functions, each doing a share of an op of
// rsd_cpu.h, so that the caller decides how many threads take part. A row's result has the same
// bits whatever other rows come with it: the order of every sum depends on its length only.

#ifndef RSD_CPU_KERNELS_H_
#define RSD_CPU_KERNELS_H_

#include "rsd_cpu.h"

// A query is one head of one row. The queries of a sequence that share a K/V head are numbered
// row by row; a share of the work is at most `attention_queries` of them.
struct AttentionShare {
    int64_t seq, kv_head, first_query, num_queries;
};

// Of a row of logits, of which some may not be finite.
struct Largest {
    int64_t id;  // the first of equals; -1 if not all are finite
    float value;
    bool finite;
};

struct Kernels {
    const char* name;
    int64_t attention_queries;
    void (*product)(const RsdProduct&, int64_t first_output, int64_t last_output);
    void (*embed)(const RsdEmbed&, int64_t first_row, int64_t last_row);
    void (*norm)(const RsdNorm&, int64_t first_row, int64_t last_row);
    void (*silu_mul)(const RsdSiluMul&, int64_t first_column, int64_t last_column);
    void (*rope_write)(const RsdRopeWrite&, int64_t first_row, int64_t last_row);
    void (*attend)(const RsdAttention&, const AttentionShare&);
    void (*draw)(const RsdDraw&);
    Largest (*largest)(const float* row, int64_t num_ids);
    void (*scale)(float* row, int64_t num_ids, float temperature, float most);
    bool (*quantise)(const RsdQuantise&, int64_t first_block, int64_t last_block);  // see Runner
};

// Those that were compiled; library.cpp chooses the best one that this machine can run.
#if defined(__x86_64__)
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx2;
#endif
extern const Kernels kernels_baseline;

constexpr int64_t MAX_HEAD_DIM = 256;

#endif  // RSD_CPU_KERNELS_H_
