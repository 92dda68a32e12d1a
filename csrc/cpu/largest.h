// The largest of a row of logits, and the row as scores of a draw.

#ifndef RSD_CPU_LARGEST_H_
#define RSD_CPU_LARGEST_H_

#include "kernels.h"
#include "vector.h"

namespace {

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// Eight vectors at a time, so that a search need not wait for the last comparison.
constexpr int64_t SEARCHED = 8 * LANES;

inline int64_t find(const float* row, int64_t num_ids, float value) {
    int64_t id = 0;
    for (; id + SEARCHED <= num_ids; id += SEARCHED) {
        IntVec found{};
        for (int64_t i = 0; i < SEARCHED; i += LANES) found |= load(row + id + i) == value;
        int32_t any = 0;
        for (int lane = 0; lane < LANES; ++lane) any |= found[lane];
        if (any) break;
    }
    while (id < num_ids && row[id] != value) ++id;
    return id;
}

// A logit that is not finite shows in their sum.
Largest largest(const float* row, int64_t num_ids) {
    constexpr int64_t VECTORS = 4;
    Vec most[VECTORS], sum[VECTORS] = {};
    for (Vec& vec : most) vec = broadcast(-__builtin_inff());
    int64_t id = 0;
    for (; id + VECTORS * LANES <= num_ids; id += VECTORS * LANES) {
        for (int64_t i = 0; i < VECTORS; ++i) {
            const Vec logit = load(row + id + i * LANES);
            most[i] = maximum(logit, most[i]);
            sum[i] += logit;
        }
    }
    const Vec of_all = maximum(maximum(most[0], most[1]), maximum(most[2], most[3]));
    float value = -__builtin_inff();
    for (int lane = 0; lane < LANES; ++lane) value = of_all[lane] > value ? of_all[lane] : value;
    float total = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; id < num_ids; ++id) {
        value = row[id] > value ? row[id] : value;
        total += row[id];
    }
    if (!__builtin_isfinite(total)) return {-1, value, false};
    return {find(row, num_ids, value), value, true};
}

// row = row / temperature - most
void scale(float* row, int64_t num_ids, float temperature, float most) {
    for (int64_t id = 0; id < num_ids; ++id) row[id] = row[id] / temperature - most;
}

}  // namespace

#endif  // RSD_CPU_LARGEST_H_
