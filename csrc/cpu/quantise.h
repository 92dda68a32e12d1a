// Rounds plain matrices to blocks of Q8_0 and Q4_1, as rsd_kernels/formats/quantise.py does.
//
// LANES blocks at a time, each in a lane of its own: the sums over a block are then those of
// vectors, and need no step from lane to lane.

#ifndef RSD_CPU_QUANTISE_H_
#define RSD_CPU_QUANTISE_H_

#include "formats.h"
#include "rsd_cpu.h"

namespace {

constexpr int BLOCK = 32;
constexpr int FIT_ROUNDS = 8;
constexpr float LARGEST_HALF = 65504.0f;

// Rounded to the nearest, of two as near to the even one, as F16C does.
inline Half to_half(float value) {
#if defined(__F16C__)
    return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    uint32_t half;
    if (bits > 0x7f800000) {  // NaN
        half = 0x7e00;
    } else if (bits >= 0x477ff000) {  // 65520 and more
        half = 0x7c00;
    } else if (bits < 0x38800000) {  // below 2^-14: its last bit stands for 2^-24, as that of 0.5
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        half = bits - 0x3f000000;
    } else {
        half = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
#endif
}

inline Vec rounded_to_half(Vec value) {
#if RSD_LANES == 16
    return (Vec)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < LANES; ++lane) value[lane] = to_float(to_half(value[lane]));
    return value;
#endif
}

inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// To a whole number; |value| is far below 2^22.
inline Vec rounded(Vec value) { return (value + 12582912.0f) - 12582912.0f; }

// Of a block of equal values the scale is 0, and its levels are 0 whatever it is.
inline Vec divisor_of(Vec scale) { return scale == 0.0f ? broadcast(1.0f) : scale; }

// x[i] holds element i of each block, or in the lanes of no block 0.
struct Tile {
    Vec x[BLOCK];

    // False if a value is no number that a half can come near to.
    template <typename Element>
    bool read(const Element* from, int64_t num_blocks) {
        float lanes[BLOCK][LANES] = {};
        bool fits = true;
        for (int64_t block = 0; block < num_blocks; ++block) {
            for (int i = 0; i < BLOCK; ++i) {
                const float value = to_float(from[block * BLOCK + i]);
                fits &= __builtin_fabsf(value) <= LARGEST_HALF;
                lanes[i][block] = value;
            }
        }
        for (int i = 0; i < BLOCK; ++i) x[i] = load(lanes[i]);
        return fits;
    }
};

inline void put_half(uint8_t* to, float value) {
    const Half half = to_half(value);
    memcpy(to, &half, sizeof half);
}

inline void pack_q8_0(const Tile& tile, int64_t num_blocks, uint8_t* to) {
    Vec most{};
    for (const Vec& x : tile.x) most = larger(larger(x, -x), most);  // 0 rather than -0
    const Vec scale = rounded_to_half(most / 127.0f), divisor = divisor_of(scale);
    int32_t levels[BLOCK][LANES];
    for (int i = 0; i < BLOCK; ++i) {
        const Vec bounded = larger(smaller(tile.x[i] / divisor, broadcast(127)), broadcast(-127));
        const IntVec level = __builtin_convertvector(rounded(bounded), IntVec);
        memcpy(levels[i], &level, sizeof level);
    }
    for (int64_t block = 0; block < num_blocks; ++block, to += Q8_0::BYTES) {
        put_half(to, scale[block]);
        for (int i = 0; i < BLOCK; ++i) to[2 + i] = static_cast<uint8_t>(levels[i][block]);
    }
}

// Scale and minimum of every block, with what the next fit needs of the levels they lead to.
class Fit {
  public:
    Fit(const Tile& tile, Vec mean, Vec scale, Vec minimum)
        : scale_(rounded_to_half(scale)), minimum_(rounded_to_half(minimum)) {
        const Vec divisor = divisor_of(scale_);
        for (const Vec& x : tile.x) {
            const Vec q = level(x, divisor);
            const Vec off = q * scale_ + minimum_ - x;
            error_ += off * off;
            levels_ += q;
            squares_ += q * q;
            products_ += q * (x - mean);
        }
    }

    // Of least squared error for these levels.
    Fit next(const Tile& tile, Vec mean) const {
        const Vec mean_level = levels_ / BLOCK;
        const Vec spread = squares_ - levels_ * mean_level;  // exact
        const Vec scale = rounded_to_half(products_ / larger(spread, broadcast(1e-30f)));
        return Fit(tile, mean, scale, mean - scale * mean_level);
    }

    // Takes over where `other` is better; whether it was anywhere.
    bool improve(const Fit& other) {
        const IntVec better = other.error_ < error_;
        scale_ = better ? other.scale_ : scale_;
        minimum_ = better ? other.minimum_ : minimum_;
        error_ = better ? other.error_ : error_;
        levels_ = better ? other.levels_ : levels_;
        squares_ = better ? other.squares_ : squares_;
        products_ = better ? other.products_ : products_;
        return any(better);
    }

    void pack(const Tile& tile, int64_t num_blocks, uint8_t* to) const {
        const Vec divisor = divisor_of(scale_);
        int32_t bytes[BLOCK / 2][LANES];
        for (int i = 0; i < BLOCK / 2; ++i) {
            const Vec both = level(tile.x[i], divisor) + level(tile.x[i + 16], divisor) * 16.0f;
            const IntVec packed = __builtin_convertvector(both, IntVec);
            memcpy(bytes[i], &packed, sizeof packed);
        }
        for (int64_t block = 0; block < num_blocks; ++block, to += Q4_1::BYTES) {
            put_half(to, scale_[block]);
            put_half(to + 2, minimum_[block]);
            for (int i = 0; i < BLOCK / 2; ++i) to[4 + i] = static_cast<uint8_t>(bytes[i][block]);
        }
    }

  private:
    Vec level(Vec x, Vec divisor) const {
        return rounded(larger(smaller((x - minimum_) / divisor, broadcast(15)), Vec{}));
    }

    Vec scale_, minimum_, error_{}, levels_{}, squares_{}, products_{};
};

inline void pack_q4_1(const Tile& tile, int64_t num_blocks, uint8_t* to) {
    Vec low = tile.x[0], high = tile.x[0], sum{};
    for (const Vec& x : tile.x) {
        low = smaller(low, x);
        high = larger(high, x);
        sum += x;
    }
    const Vec mean = sum / BLOCK;
    Fit best(tile, mean, (high - low) / 15.0f, low);
    for (int round = 0; round < FIT_ROUNDS; ++round) {
        if (!best.improve(best.next(tile, mean))) break;
    }
    best.pack(tile, num_blocks, to);
}

template <typename Element>
bool quantise_blocks(const RsdQuantise& q, int64_t first_block, int64_t last_block) {
    const auto* from = static_cast<const Element*>(q.matrix.rows);
    const bool eight_bits = q.type == RSD_CPU_Q8_0;
    const int64_t bytes = eight_bits ? Q8_0::BYTES : Q4_1::BYTES;
    Tile tile;
    for (int64_t block = first_block; block < last_block; block += LANES) {
        const int64_t count = last_block - block < LANES ? last_block - block : LANES;
        if (!tile.read(from + block * BLOCK, count)) return false;
        (eight_bits ? pack_q8_0 : pack_q4_1)(tile, count, q.rows + block * bytes);
    }
    return true;
}

bool quantise(const RsdQuantise& q, int64_t first_block, int64_t last_block) {
    switch (q.matrix.type) {
        case RSD_CPU_FLOAT32: return quantise_blocks<float>(q, first_block, last_block);
        case RSD_CPU_BFLOAT16: return quantise_blocks<BFloat16>(q, first_block, last_block);
        default: return quantise_blocks<Half>(q, first_block, last_block);
    }
}

}  // namespace

#endif  // RSD_CPU_QUANTISE_H_
