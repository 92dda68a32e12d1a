// Ops on one row at a time: RMSNorm (Zhang and Sennrich, 2019), the gated activation
// (SwiGLU, Shazeer, 2020), rotary positions (Su et al., 2021) and the store of K and V into pages.

#ifndef RSD_CPU_ROWS_H_
#define RSD_CPU_ROWS_H_

#include <math.h>

#include "kernels.h"
#include "vector.h"

namespace {

// y may be x.
inline void norm_row(float* y, const float* x, const float* weight, int64_t width, float eps) {
    Vec parts[4] = {};
    int64_t k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const Vec v = load(x + k + i * LANES);
            parts[i] += v * v;
        }
    }
    for (; k + LANES <= width; k += LANES) {
        const Vec v = load(x + k);
        parts[0] += v * v;
    }
    if (k < width) {
        const Vec v = load_part(x + k, width - k);
        parts[1] += v * v;
    }
    const float squares = lane_sum((parts[0] + parts[1]) + (parts[2] + parts[3]));
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
    for (k = 0; k + LANES <= width; k += LANES) {
        store(y + k, load(x + k) * scale * load(weight + k));
    }
    for (; k < width; ++k) y[k] = x[k] * scale * weight[k];
}

void norm(const RsdNorm& n, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
        const int64_t end = n.row_end ? n.row_end[i] : i + 1;
        const float* x = n.x + (end > 0 ? end - 1 : 0) * n.x_stride;
        norm_row(n.y + i * n.y_stride, x, n.weight, n.width, n.eps);
    }
}

inline Vec silu(Vec x) { return x / (exp(-x) + 1.0f); }

void silu_mul(const RsdSiluMul& s, int64_t first, int64_t last) {
    for (int64_t r = 0; r < s.num_rows; ++r) {
        const float* gate = s.gate_up + r * 2 * s.width;
        const float* up = gate + s.width;
        float* out = s.gated + r * s.width;
        int64_t n = first;
        for (; n + LANES <= last; n += LANES) store(out + n, silu(load(gate + n)) * load(up + n));
        if (n < last) {
            const Vec part = silu(load_part(gate + n, last - n)) * load_part(up + n, last - n);
            store_part(out + n, part, last - n);
        }
    }
}

// to = the head `x` rotated; the tables hold the cosines twice, and the sines with the sign of
// their half. `to` may be `x`.
inline void rotate(float* to, const float* x, const float* cos, const float* sin, int64_t half) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const Vec low = load(x + i), high = load(x + half + i);
        store(to + i, low * load(cos + i) + high * load(sin + i));
        store(to + half + i, high * load(cos + half + i) + low * load(sin + half + i));
    }
    for (; i < half; ++i) {
        const float low = x[i], high = x[half + i];
        to[i] = low * cos[i] + high * sin[i];
        to[half + i] = high * cos[half + i] + low * sin[half + i];
    }
}

void rope_write(const RsdRopeWrite& w, int64_t first, int64_t last) {
    const int64_t dim = w.head_dim;
    for (int64_t r = first; r < last; ++r) {
        const int64_t angle = (w.position ? w.position[r] : r) * dim;
        const float *cos = w.cos + angle, *sin = w.sin + angle;
        float* head = w.qkv + r * w.qkv_stride;
        for (int64_t h = 0; h < w.num_q_heads; ++h, head += dim) {
            if (w.q_norm) norm_row(head, head, w.q_norm, dim, w.eps);
            rotate(head, head, cos, sin, dim / 2);
        }
        if (w.page[r] < 0) continue;
        const RsdPages& pages = w.pages;
        const int64_t place = w.page[r] * pages.page_stride + w.offset[r] * pages.token_stride;
        for (int64_t h = 0; h < w.num_kv_heads; ++h, head += dim) {
            float* k = pages.k + place + h * pages.head_stride;
            float* v = pages.v + place + h * pages.head_stride;
            if (w.k_norm) norm_row(head, head, w.k_norm, dim, w.eps);
            rotate(k, head, cos, sin, dim / 2);
            __builtin_memcpy(v, head + w.num_kv_heads * dim, static_cast<size_t>(dim) * 4);
        }
    }
}

}  // namespace

#endif  // RSD_CPU_ROWS_H_
