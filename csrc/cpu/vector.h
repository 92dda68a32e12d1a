// Vectors as wide as the instruction set this file is compiled for, through the vector extensions
// of GCC and Clang. Everything is internal to the file that includes it: the same sources
// are compiled once for each instruction set, and these must not be linked into one another.

#ifndef RSD_CPU_VECTOR_H_
#define RSD_CPU_VECTOR_H_

#include <stdint.h>

#if defined(__AVX512F__)
#define RSD_LANES 16
#elif defined(__AVX2__)
#define RSD_LANES 8
#else
#define RSD_LANES 4
#endif

namespace {

constexpr int LANES = RSD_LANES;

typedef float Vec __attribute__((vector_size(RSD_LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(RSD_LANES * 4)));
typedef float UnalignedVec __attribute__((vector_size(RSD_LANES * 4), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }

// A weight as checkpoints store it: the upper half of a float32, so widening it is exact.
struct BFloat16 {
    uint16_t bits;
};

typedef uint16_t HalfVec __attribute__((vector_size(RSD_LANES * 2), aligned(2), may_alias));
typedef uint32_t WordVec __attribute__((vector_size(RSD_LANES * 4)));

inline Vec load(const BFloat16* from) {
    const HalfVec bits = *reinterpret_cast<const HalfVec*>(from);
    return (Vec)(__builtin_convertvector(bits, WordVec) << 16);
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float found;
    __builtin_memcpy(&found, &bits, sizeof found);
    return found;
}

// The lanes of a and b in turn: the first halves of both in to[0], the second ones in to[1].
inline void interleave(WordVec a, WordVec b, WordVec* to) {
    IntVec from{};
    for (int lane = 0; lane < LANES; ++lane) from[lane] = lane / 2 + lane % 2 * LANES;
#if defined(__clang__)
    for (int lane = 0; lane < LANES; ++lane) {
        const WordVec& of = lane % 2 ? b : a;
        to[0][lane] = of[lane / 2];
        to[1][lane] = of[lane / 2 + LANES / 2];
    }
#else
    to[0] = __builtin_shuffle(a, b, from);
    to[1] = __builtin_shuffle(a, b, from + LANES / 2);
#endif
}

inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

inline Vec broadcast(float value) { return Vec{} + value; }

inline bool any(IntVec mask) {
    int32_t found = 0;
    for (int i = 0; i < LANES; ++i) found |= mask[i];
    return found != 0;
}

// The first `count` elements, then zeros: memory past the end of a row is never read.
template <typename T>
inline Vec load_part(const T* from, int64_t count) {
    float lanes[LANES] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(from[i]);
    return load(lanes);
}

inline void store_part(float* to, Vec value, int64_t count) {
    float lanes[LANES];
    store(lanes, value);
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// [sums of the halves of a's groups | the same of b], for groups of 2 * WIDTH lanes.
template <int WIDTH>
inline Vec fold(Vec a, Vec b) {
    IntVec low{};
    for (int lane = 0; lane < LANES; ++lane) {
        const int inside = lane % (LANES / 2);
        low[lane] = lane / (LANES / 2) * LANES + inside / WIDTH * 2 * WIDTH + inside % WIDTH;
    }
#if defined(__clang__)
    Vec first{}, second{};
    for (int lane = 0; lane < LANES; ++lane) {
        const int at = low[lane];
        first[lane] = at < LANES ? a[at] : b[at - LANES];
        second[lane] = at + WIDTH < LANES ? a[at + WIDTH] : b[at + WIDTH - LANES];
    }
    return first + second;
#else
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + WIDTH);
#endif
}

// sums[i] = the sum of the lanes of v[i], always in the same order: halves onto halves. `sums` has
// room for whole vectors; `v` is overwritten.
template <int COUNT, int WIDTH = LANES / 2>
inline void lane_sums(Vec* v, float* sums) {
    if constexpr (WIDTH == 0) {
        for (int i = 0; i < COUNT; ++i) store(sums + i * LANES, v[i]);
    } else {
        constexpr int HALF = (COUNT + 1) / 2;
#pragma GCC unroll 16
        for (int i = 0; i < HALF; ++i) {
            v[i] = fold<WIDTH>(v[2 * i], 2 * i + 1 < COUNT ? v[2 * i + 1] : Vec{});
        }
        lane_sums<HALF, WIDTH / 2>(v, sums);
    }
}

inline float lane_sum(Vec v) {
    float sums[LANES];
    lane_sums<1>(&v, sums);
    return sums[0];
}

// e^x to about one unit in the last place: x = n ln 2 + r, e^r by a polynomial (Cephes, Moshier,
// expf). Below the smallest normal number it is 0, from 2^127.4 on infinite.
inline Vec exp(Vec x) {
    const IntVec tiny = x < -87.3f, huge = x > 88.3f;
    const Vec bounded = tiny | huge ? Vec{} : x;
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const Vec n = (bounded * 1.44269504088896341f + to_integer) - to_integer;
    Vec r = bounded - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Vec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
    const Vec power = (Vec)exponent;  // the same bits
    return tiny ? Vec{} : huge ? broadcast(__builtin_inff()) : p * power;
}

}  // namespace

#endif  // RSD_CPU_VECTOR_H_
