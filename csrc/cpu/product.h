// Rows times a weight, y = x Wᵀ, for any number of rows.
//
// One kernel serves them all: a tile of few rows and few outputs holds all its sums in registers,
// the lanes of a vector run along the inputs, and the sum of one (row, output) is taken in the same
// order whatever the tile. With one tile's worth of rows W is read once, as fast as memory gives
// it; with more, a panel of W that fits the inner cache meets one group of rows after another.

#ifndef RSD_CPU_PRODUCT_H_
#define RSD_CPU_PRODUCT_H_

#include "kernels.h"
#include "vector.h"

namespace {

// Outputs of a tile of ROWS rows: as many sums as there are registers for.
template <int ROWS>
constexpr int tile_outputs() {
#if RSD_LANES == 16
    return ROWS <= 3 ? 8 : ROWS == 4 ? 6 : ROWS <= 6 ? 4 : 3;
#else
    return ROWS == 1 ? 8 : ROWS == 2 ? 5 : ROWS <= 4 ? 3 : 2;
#endif
}

#if RSD_LANES == 16
constexpr int MAX_TILE_ROWS = 8;  // up to this many rows are one group
constexpr int GROUP_ROWS = 6;     // more are cut into groups of this many
#else
constexpr int MAX_TILE_ROWS = 6;
constexpr int GROUP_ROWS = 4;
#endif

constexpr int64_t PANEL_FLOATS = 48 * 1024;  // of W, beside the rows in the inner cache
constexpr int64_t PREFETCH_TILES = 1;        // how far ahead W is prefetched

// sums[r * OUTPUTS + o] = sum_k x[r][k] * w[o][k]; whole vectors are written.
template <int ROWS, int OUTPUTS, typename Weight>
inline void dot_tile(const float* const* x, const Weight* const* w, int64_t length, int64_t ahead,
                     float* sums) {
    Vec acc[ROWS * OUTPUTS] = {};
    int64_t k = 0;
    for (; k + LANES <= length; k += LANES) {
        Vec row[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) row[r] = load(x[r] + k);
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS; ++o) {
            if (ahead != 0) __builtin_prefetch(w[o] + k + ahead, 0, 3);
            const Vec weight = load(w[o] + k);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) acc[r * OUTPUTS + o] += row[r] * weight;
        }
    }
    if (k < length) {
        for (int o = 0; o < OUTPUTS; ++o) {
            const Vec weight = load_part(w[o] + k, length - k);
            for (int r = 0; r < ROWS; ++r) {
                acc[r * OUTPUTS + o] += load_part(x[r] + k, length - k) * weight;
            }
        }
    }
    lane_sums<ROWS * OUTPUTS>(acc, sums);
}

constexpr int whole_vectors(int count) { return (count + LANES - 1) / LANES * LANES; }

template <int COUNT>
inline void add(float* __restrict__ to, const float* __restrict__ from) {
    for (int i = 0; i < COUNT; ++i) to[i] += from[i];
}

// `weight` is the row of the first output.
template <int ROWS, int OUTPUTS, typename Weight>
inline void product_tile(const RsdProduct& p, const Weight* weight, int64_t row, int64_t output,
                         bool from_memory) {
    const float* x[ROWS];
    const Weight* w[OUTPUTS];
    for (int r = 0; r < ROWS; ++r) x[r] = p.x + (row + r) * p.x_stride;
    for (int o = 0; o < OUTPUTS; ++o) w[o] = weight + o * p.num_inputs;
    float sums[whole_vectors(ROWS * OUTPUTS)];
    const int64_t ahead = from_memory ? PREFETCH_TILES * OUTPUTS * p.num_inputs : 0;
    dot_tile<ROWS, OUTPUTS>(x, w, p.num_inputs, ahead, sums);
    for (int r = 0; r < ROWS; ++r) {
        float* y = p.y + (row + r) * p.y_stride + output;
        float* sum = sums + r * OUTPUTS;
        if (p.bias) add<OUTPUTS>(sum, p.bias + output);
        if (p.residual) add<OUTPUTS>(sum, p.residual + (row + r) * p.residual_stride + output);
        __builtin_memcpy(y, sum, OUTPUTS * sizeof(float));
    }
}

// Outputs first..last, whose rows of W begin at `weight`.
template <int ROWS, typename Weight>
void product_group(const RsdProduct& p, const Weight* weight, int64_t row, int64_t first,
                   int64_t last, bool from_memory) {
    constexpr int OUTPUTS = tile_outputs<ROWS>();
    int64_t output = first;
    for (; output + OUTPUTS <= last; output += OUTPUTS) {
        const Weight* tile = weight + (output - first) * p.num_inputs;
        product_tile<ROWS, OUTPUTS>(p, tile, row, output, from_memory);
    }
    for (; output < last; ++output) {
        const Weight* tile = weight + (output - first) * p.num_inputs;
        product_tile<ROWS, 1>(p, tile, row, output, from_memory);
    }
}

template <typename Weight>
void product_rows(const RsdProduct& p, const Weight* weight, int64_t row, int64_t num_rows,
                  int64_t first, int64_t last, bool from_memory) {
    switch (num_rows) {
        case 1: return product_group<1>(p, weight, row, first, last, from_memory);
        case 2: return product_group<2>(p, weight, row, first, last, from_memory);
        case 3: return product_group<3>(p, weight, row, first, last, from_memory);
        case 4: return product_group<4>(p, weight, row, first, last, from_memory);
        case 5: return product_group<5>(p, weight, row, first, last, from_memory);
        case 6: return product_group<6>(p, weight, row, first, last, from_memory);
#if RSD_LANES == 16
        case 7: return product_group<7>(p, weight, row, first, last, from_memory);
        case 8: return product_group<8>(p, weight, row, first, last, from_memory);
#endif
    }
}

// All rows, group after group, times a panel of W.
template <typename Weight>
void product_panel(const RsdProduct& p, const Weight* weight, int64_t first, int64_t last,
                   bool from_memory) {
    for (int64_t row = 0; row < p.num_rows;) {
        const int64_t left = p.num_rows - row;
        const int64_t rows = left <= MAX_TILE_ROWS ? left : GROUP_ROWS;
        product_rows(p, weight, row, rows, first, last, from_memory && row == 0);
        row += rows;
    }
}

// Widens the 16-bit weights of a panel, once for all groups of rows.
inline void widen(const BFloat16* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    for (; i < count; ++i) to[i] = to_float(from[i]);
}

template <typename Weight>
void product_outputs(const RsdProduct& p, int64_t first, int64_t last) {
    const Weight* weight = static_cast<const Weight*>(p.weight);
    if (p.num_rows <= MAX_TILE_ROWS) {
        product_rows(p, weight + first * p.num_inputs, 0, p.num_rows, first, last, true);
        return;
    }
    const int64_t whole = tile_outputs<GROUP_ROWS>();
    int64_t panel = PANEL_FLOATS / (p.num_inputs > 0 ? p.num_inputs : 1) / whole * whole;
    if (panel < whole) panel = whole;
    for (int64_t output = first; output < last; output += panel) {
        const int64_t end = output + panel < last ? output + panel : last;
        const Weight* rows = weight + output * p.num_inputs;
        if constexpr (sizeof(Weight) < sizeof(float)) {
            const int64_t count = (end - output) * p.num_inputs;
            if (count <= PANEL_FLOATS) {
                alignas(64) float widened[PANEL_FLOATS];
                widen(rows, count, widened);
                product_panel(p, widened, output, end, false);
                continue;
            }
        }
        product_panel(p, rows, output, end, true);
    }
}

void product(const RsdProduct& p, int64_t first, int64_t last) {
    if (p.weight_type == RSD_CPU_BFLOAT16) return product_outputs<BFloat16>(p, first, last);
    product_outputs<float>(p, first, last);
}

}  // namespace

#endif  // RSD_CPU_PRODUCT_H_
