// Rows times a weight, y = x Wᵀ, for any number of rows.
//
// One kernel serves them all: a tile of few rows and few outputs holds all its sums in registers,
// the lanes of a vector run along the inputs, and the sum of one (row, output) is taken in the same
// order whatever the tile. With one tile's worth of rows W is read once, as it is stored and as
// fast as memory gives it; with more, a panel of W that fits the inner cache, expanded to float32,
// meets one group of rows after another. So a product has the bits of that by the expanded weight.

#ifndef RSD_CPU_PRODUCT_H_
#define RSD_CPU_PRODUCT_H_

#include "formats.h"
#include "kernels.h"

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

constexpr int64_t PANEL_FLOATS = 48 * 1024;     // of W, beside the rows in the inner cache
constexpr int64_t WIDENED_FLOATS = 128 * 1024;  // room for a panel of one tile of long rows
constexpr int64_t PREFETCH_TILES = 1;           // how far ahead W is prefetched
constexpr int64_t CACHE_LINE = 64;

// sums[r * OUTPUTS + o] = sum_k x[r][k] * w[o][k]; whole vectors are written.
template <int ROWS, int OUTPUTS, typename Format, typename Element>
inline void dot_tile(const float* const* x, const Element* const* weights, int64_t length,
                     int64_t ahead, float* sums) {
    const uint8_t* w[OUTPUTS];
    for (int o = 0; o < OUTPUTS; ++o) w[o] = reinterpret_cast<const uint8_t*>(weights[o]);
    Vec acc[ROWS * OUTPUTS] = {};
    int64_t k = 0, at = 0;
    for (; k + Format::LENGTH <= length; k += Format::LENGTH, at += Format::BYTES) {
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS; ++o) {
            if (ahead != 0) {
                for (int64_t line = 0; line < Format::BYTES; line += CACHE_LINE) {
                    __builtin_prefetch(w[o] + at + ahead + line, 0, 3);
                }
            }
            const typename Format::Block block(w[o] + at);
#pragma GCC unroll 16
            for (int part = 0; part < Format::LENGTH / LANES; ++part) {
                const Vec weight = block.part(part);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) {
                    acc[r * OUTPUTS + o] += load(x[r] + k + part * LANES) * weight;
                }
            }
        }
    }
    if constexpr (is_plain<Format>) {
        for (int o = 0; k < length && o < OUTPUTS; ++o) {
            const auto* rest = reinterpret_cast<const typename Format::Type*>(w[o] + at);
            const Vec weight = load_part(rest, length - k);
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
template <int ROWS, int OUTPUTS, typename Format>
inline void product_tile(const RsdProduct& p, const uint8_t* weight, int64_t row, int64_t output,
                         bool from_memory) {
    const int64_t bytes = row_bytes<Format>(p.num_inputs);
    const float* x[ROWS];
    const uint8_t* w[OUTPUTS];
    for (int r = 0; r < ROWS; ++r) x[r] = p.x + (row + r) * p.x_stride;
    for (int o = 0; o < OUTPUTS; ++o) w[o] = weight + o * bytes;
    float sums[whole_vectors(ROWS * OUTPUTS)];
    const int64_t ahead = from_memory ? PREFETCH_TILES * OUTPUTS * bytes : 0;
    dot_tile<ROWS, OUTPUTS, Format>(x, w, p.num_inputs, ahead, sums);
    for (int r = 0; r < ROWS; ++r) {
        float* y = p.y + (row + r) * p.y_stride + output;
        float* sum = sums + r * OUTPUTS;
        if (p.weight->bias) add<OUTPUTS>(sum, p.weight->bias + output);
        if (p.residual) add<OUTPUTS>(sum, p.residual + (row + r) * p.residual_stride + output);
        __builtin_memcpy(y, sum, OUTPUTS * sizeof(float));
    }
}

// Outputs first..last, whose rows of W begin at `weight`.
template <int ROWS, typename Format>
void product_group(const RsdProduct& p, const uint8_t* weight, int64_t row, int64_t first,
                   int64_t last, bool from_memory) {
    constexpr int OUTPUTS = tile_outputs<ROWS>();
    const int64_t bytes = row_bytes<Format>(p.num_inputs);
    int64_t output = first;
    for (; output + OUTPUTS <= last; output += OUTPUTS) {
        const uint8_t* tile = weight + (output - first) * bytes;
        product_tile<ROWS, OUTPUTS, Format>(p, tile, row, output, from_memory);
    }
    for (; output < last; ++output) {
        const uint8_t* tile = weight + (output - first) * bytes;
        product_tile<ROWS, 1, Format>(p, tile, row, output, from_memory);
    }
}

template <typename Format>
void product_rows(const RsdProduct& p, const uint8_t* weight, int64_t row, int64_t num_rows,
                  int64_t first, int64_t last, bool from_memory) {
    switch (num_rows) {
        case 1: return product_group<1, Format>(p, weight, row, first, last, from_memory);
        case 2: return product_group<2, Format>(p, weight, row, first, last, from_memory);
        case 3: return product_group<3, Format>(p, weight, row, first, last, from_memory);
        case 4: return product_group<4, Format>(p, weight, row, first, last, from_memory);
        case 5: return product_group<5, Format>(p, weight, row, first, last, from_memory);
        case 6: return product_group<6, Format>(p, weight, row, first, last, from_memory);
#if RSD_LANES == 16
        case 7: return product_group<7, Format>(p, weight, row, first, last, from_memory);
        case 8: return product_group<8, Format>(p, weight, row, first, last, from_memory);
#endif
    }
}

// All rows, group after group, times a panel of W.
template <typename Format>
void product_panel(const RsdProduct& p, const uint8_t* weight, int64_t first, int64_t last,
                   bool from_memory) {
    for (int64_t row = 0; row < p.num_rows;) {
        const int64_t left = p.num_rows - row;
        const int64_t rows = left <= MAX_TILE_ROWS ? left : GROUP_ROWS;
        product_rows<Format>(p, weight, row, rows, first, last, from_memory && row == 0);
        row += rows;
    }
}

// Outputs first..last of a part of W whose output `start` is the row at `weight`.
template <typename Format>
void product_outputs(const RsdProduct& p, const uint8_t* weight, int64_t start, int64_t first,
                     int64_t last) {
    const int64_t bytes = row_bytes<Format>(p.num_inputs);
    weight += (first - start) * bytes;
    if (p.num_rows <= MAX_TILE_ROWS) {
        product_rows<Format>(p, weight, 0, p.num_rows, first, last, true);
        return;
    }
    const int64_t whole = tile_outputs<GROUP_ROWS>();
    int64_t panel = PANEL_FLOATS / (p.num_inputs > 0 ? p.num_inputs : 1) / whole * whole;
    if (panel < whole) panel = whole;
    for (int64_t output = first; output < last; output += panel) {
        const int64_t end = output + panel < last ? output + panel : last;
        const uint8_t* rows = weight + (output - first) * bytes;
        if constexpr (Format::BYTES < Format::LENGTH * static_cast<int64_t>(sizeof(float))) {
            if ((end - output) * p.num_inputs <= WIDENED_FLOATS) {
                alignas(64) float widened[WIDENED_FLOATS];
                for (int64_t i = 0; i < end - output; ++i) {
                    expand_row<Format>(rows + i * bytes, p.num_inputs, widened + i * p.num_inputs);
                }
                const auto* panel_rows = reinterpret_cast<const uint8_t*>(widened);
                product_panel<Plain<float>>(p, panel_rows, output, end, false);
                continue;
            }
        }
        product_panel<Format>(p, rows, output, end, true);
    }
}

void product(const RsdProduct& p, int64_t first, int64_t last) {
    int64_t start = 0;
    for (int64_t i = 0; i < p.weight->num_parts; ++i) {
        const RsdMatrix& part = p.weight->parts[i];
        const int64_t end = start + part.num_outputs;
        const int64_t from = first > start ? first : start, to = last < end ? last : end;
        if (from < to) {
            const auto* rows = static_cast<const uint8_t*>(part.rows);
            with_format(part.type, [&](auto format) {
                product_outputs<decltype(format)>(p, rows, start, from, to);
            });
        }
        start = end;
    }
}

// Row `token[r]` of a matrix times `scale`, for rows first..last.
void embed(const RsdEmbed& e, int64_t first, int64_t last) {
    with_format(e.table.type, [&](auto format) {
        using Format = decltype(format);
        const auto* rows = static_cast<const uint8_t*>(e.table.rows);
        for (int64_t r = first; r < last; ++r) {
            float* to = e.out + r * e.width;
            expand_row<Format>(rows + e.token[r] * row_bytes<Format>(e.width), e.width, to);
            for (int64_t i = 0; e.scale != 1.0f && i < e.width; ++i) to[i] *= e.scale;
        }
    });
}

}  // namespace

#endif  // RSD_CPU_PRODUCT_H_
