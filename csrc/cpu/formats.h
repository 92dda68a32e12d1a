// The formats in which the rows of a weight are stored, each a struct with
//
//     LENGTH, BYTES   elements and bytes of a block; a row is a whole number of blocks, but of the
//                     plain formats, whose last block may be shorter
//     Block           reads one: part(i) is its i-th vector, as exact float32
//
// The blocks are those of GGUF (ggml-common.h and the reference code in gguf's quants.py tell how
// they are packed). A quantised element is q * scale, or q * scale + minimum: q has at most 8 bits,
// scale at most 19, so that their product is exact and one rounding is left, whether the compiler
// fuses the addition or not.

#ifndef RSD_CPU_FORMATS_H_
#define RSD_CPU_FORMATS_H_

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vector.h"

namespace {

struct Half {
    uint16_t bits;
};

// Portable: the exponent is moved, then its bias corrected by a product, which is exact. What is
// infinite or NaN stays so.
inline float to_float(Half value) {
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#else
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const bool finite = magnitude < (31u << 23);
    uint32_t bits = finite ? magnitude : magnitude | 0x7f800000u;
    float found;
    memcpy(&found, &bits, sizeof found);
    if (finite) found *= 5.192296858534828e33f;  // 2^112
    memcpy(&bits, &found, sizeof bits);
    bits |= sign;
    memcpy(&found, &bits, sizeof found);
    return found;
#endif
}

inline Vec load(const Half* from) {
#if RSD_LANES == 16
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Vec found{};
    for (int lane = 0; lane < LANES; ++lane) found[lane] = to_float(from[lane]);
    return found;
#endif
}

inline float half_at(const uint8_t* at) {
    Half value;
    memcpy(&value, at, sizeof value);
    return to_float(value);
}

inline uint32_t word_at(const uint8_t* at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

typedef uint8_t ByteVec __attribute__((vector_size(RSD_LANES), aligned(1), may_alias));
typedef int8_t SignedByteVec __attribute__((vector_size(RSD_LANES), aligned(1), may_alias));

// The compilers' conversion of vectors goes by way of 16 bits, in several instructions.
inline IntVec bytes_at(const uint8_t* at) {
#if RSD_LANES == 16
    return (IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#elif RSD_LANES == 8
    return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
#else
    return __builtin_convertvector(*reinterpret_cast<const ByteVec*>(at), IntVec);
#endif
}

inline IntVec signed_bytes_at(const uint8_t* at) {
#if RSD_LANES == 16
    return (IntVec)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#elif RSD_LANES == 8
    return (IntVec)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
#else
    return __builtin_convertvector(*reinterpret_cast<const SignedByteVec*>(at), IntVec);
#endif
}

inline Vec as_floats(IntVec value) { return __builtin_convertvector(value, Vec); }

inline IntVec lane_numbers() {
    IntVec found{};
    for (int lane = 0; lane < LANES; ++lane) found[lane] = lane;
    return found;
}

template <typename Element>
struct Plain {
    static constexpr int64_t LENGTH = LANES, BYTES = LANES * sizeof(Element);
    using Type = Element;

    class Block {
      public:
        explicit Block(const uint8_t* at) : at_(reinterpret_cast<const Element*>(at)) {}
        Vec part(int) const { return load(at_); }

      private:
        const Element* at_;
    };
};

// Elements 0 to 15 of a block of 32 are the low halves of 16 bytes, the others the high ones.
inline IntVec nibbles(const uint8_t* at, int part) {
    const int first = part * LANES;
    return (bytes_at(at + first % 16) >> (first / 16 * 4)) & 15;
}

// The fifth bits of such a block are those of one word.
inline IntVec fifth_bits(uint32_t word, int part) {
    const IntVec shifted =
        (IntVec{} + static_cast<int32_t>(word >> part * LANES)) >> lane_numbers();
    return (shifted & 1) << 4;
}

template <bool FIVE_BITS, bool HAS_MINIMUM>
struct Small {
    static constexpr int SCALES = HAS_MINIMUM ? 4 : 2, HIGH = FIVE_BITS ? 4 : 0;
    static constexpr int64_t LENGTH = 32, BYTES = SCALES + HIGH + 16;

    class Block {
      public:
        explicit Block(const uint8_t* at)
            : at_(at + SCALES + HIGH),
              high_(FIVE_BITS ? word_at(at + SCALES) : 0),
              scale_(half_at(at)),
              minimum_(HAS_MINIMUM ? half_at(at + 2) : scale_ * (FIVE_BITS ? -16.0f : -8.0f)) {}

        Vec part(int i) const {
            IntVec q = nibbles(at_, i);
            if (FIVE_BITS) q |= fifth_bits(high_, i);
            return as_floats(q) * scale_ + minimum_;
        }

      private:
        const uint8_t* at_;
        uint32_t high_;
        float scale_, minimum_;
    };
};

using Q4_0 = Small<false, false>;
using Q4_1 = Small<false, true>;
using Q5_0 = Small<true, false>;
using Q5_1 = Small<true, true>;

struct Q8_0 {
    static constexpr int64_t LENGTH = 32, BYTES = 34;

    class Block {
      public:
        explicit Block(const uint8_t* at) : at_(at + 2), scale_(half_at(at)) {}
        Vec part(int i) const { return as_floats(signed_bytes_at(at_ + i * LANES)) * scale_; }

      private:
        const uint8_t* at_;
        float scale_;
    };
};

// Q4_K and Q5_K: eight sub-blocks of 32 with six bits of scale and of minimum each.
template <bool FIVE_BITS>
struct Super {
    static constexpr int SCALES = 16, HIGH = FIVE_BITS ? 32 : 0;
    static constexpr int64_t LENGTH = 256, BYTES = SCALES + HIGH + 128;

    class Block {
      public:
        explicit Block(const uint8_t* at) : high_(at + SCALES), at_(at + SCALES + HIGH) {
            const uint32_t a = word_at(at + 4), b = word_at(at + 8), c = word_at(at + 12);
            const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x03030303;
            const uint32_t scales[2] = {a & six, (c & four) | ((a >> 6 & two) << 4)};
            const uint32_t minima[2] = {b & six, (c >> 4 & four) | ((b >> 6 & two) << 4)};
            widen(scales, half_at(at), scale_);
            widen(minima, -half_at(at + 2), minimum_);
        }

        Vec part(int i) const {
            const int first = i * LANES, sub = first / 32, inside = first % 32;
            IntVec q = (bytes_at(at_ + first / 64 * 32 + inside) >> (sub % 2 * 4)) & 15;
            if (FIVE_BITS) q |= (bytes_at(high_ + inside) >> sub & 1) << 4;
            return as_floats(q) * scale_[sub] + minimum_[sub];
        }

      private:
        // Eight bytes times a factor.
        static void widen(const uint32_t* bytes, float factor, float* to) {
            uint8_t each[8];
            memcpy(each, bytes, sizeof each);
            for (int i = 0; i < 8; ++i) to[i] = static_cast<float>(each[i]) * factor;
        }

        const uint8_t *high_, *at_;
        alignas(32) float scale_[8], minimum_[8];
    };
};

using Q4_K = Super<false>;
using Q5_K = Super<true>;

// Two halves of 128 elements; 16 signed bytes of scale.
struct Q6_K {
    static constexpr int64_t LENGTH = 256, BYTES = 210;

    class Block {
      public:
        explicit Block(const uint8_t* at) : at_(at) {
            const float scale = half_at(at + 208);
            for (int i = 0; i < 16; ++i) {
                scale_[i] = static_cast<float>(static_cast<int8_t>(at[192 + i])) * scale;
            }
        }

        Vec part(int i) const {
            const int first = i * LANES, half = first / 128, quarter = first / 32 % 4;
            const int inside = first % 32;
            const uint8_t* low = at_ + half * 64 + quarter % 2 * 32 + inside;
            const uint8_t* high = at_ + 128 + half * 32 + inside;
            const IntVec q = ((bytes_at(low) >> (quarter / 2 * 4)) & 15) |
                             ((bytes_at(high) >> (quarter * 2) & 3) << 4);
            return as_floats(q - 32) * scale_[first / 16];
        }

      private:
        const uint8_t* at_;
        alignas(64) float scale_[16];
    };
};

template <typename Format>
constexpr bool is_plain = Format::LENGTH == LANES;

template <typename Format>
inline int64_t row_bytes(int64_t num_inputs) {
    if constexpr (is_plain<Format>) return num_inputs * (Format::BYTES / LANES);
    return num_inputs / Format::LENGTH * Format::BYTES;
}

// One row as float32.
template <typename Format>
inline void expand_row(const uint8_t* row, int64_t num_inputs, float* to) {
    int64_t k = 0;
    for (; k + Format::LENGTH <= num_inputs; k += Format::LENGTH, row += Format::BYTES) {
        const typename Format::Block block(row);
        for (int part = 0; part < Format::LENGTH / LANES; ++part) {
            store(to + k + part * LANES, block.part(part));
        }
    }
    if constexpr (is_plain<Format>) {
        const auto* rest = reinterpret_cast<const typename Format::Type*>(row);
        for (int64_t i = 0; k + i < num_inputs; ++i) to[k + i] = to_float(rest[i]);
    }
}

// Calls fn with the format's struct.
template <typename Fn>
inline void with_format(int64_t type, const Fn& fn) {
    switch (type) {
        case RSD_CPU_FLOAT32: return fn(Plain<float>{});
        case RSD_CPU_BFLOAT16: return fn(Plain<BFloat16>{});
        case RSD_CPU_FLOAT16: return fn(Plain<Half>{});
        case RSD_CPU_Q4_0: return fn(Q4_0{});
        case RSD_CPU_Q4_1: return fn(Q4_1{});
        case RSD_CPU_Q5_0: return fn(Q5_0{});
        case RSD_CPU_Q5_1: return fn(Q5_1{});
        case RSD_CPU_Q8_0: return fn(Q8_0{});
        case RSD_CPU_Q4_K: return fn(Q4_K{});
        case RSD_CPU_Q5_K: return fn(Q5_K{});
        case RSD_CPU_Q6_K: return fn(Q6_K{});
    }
}

}  // namespace

#endif  // RSD_CPU_FORMATS_H_
