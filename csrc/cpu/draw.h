// A draw from a distribution: the largest of score + g, g = -ln(-ln u) the Gumbel noise of an id
// (Maddison et al., 2014). The logarithms are in fixed
// point, as in rsd_kernels/gumbel, whose bits these are. Loops over plain arrays are for
// the compiler to vectorise.

#ifndef RSD_CPU_DRAW_H_
#define RSD_CPU_DRAW_H_

#include "kernels.h"
#include "philox.h"
#include "vector.h"

namespace {

constexpr int64_t IDS = 4 * LANES;   // drawn from at once: LANES blocks of four
constexpr float MOST_NOISE = 23.0f;  // g is at most 32.5 ln 2 + a little

constexpr uint32_t SERIES[] = {0x7FFFFEC3, 0x38A99518, 0x239C5F63, 0x19645BDE,
                               0x120FDB50, 0x0ADA9E60, 0x046C435E, 0x00DAD0CD};  // by 2^30
constexpr uint32_t LN2 = 0xB17217F8;                                             // by 2^32
constexpr int32_t FRACTION = 25, SHIFT = 6;
constexpr int32_t OFFSET = 127250827;  // SHIFT ln 2 + ln ln 2, by 2^FRACTION

inline uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

// 2^30 R(f), f by 2^32: 1 - log2(1 + f) = (1 - f) / 2 * R(f).
inline uint32_t ratio(uint32_t f) {
    uint32_t sum = SERIES[7];
#pragma GCC unroll 7
    for (int i = 6; i >= 0; --i) sum = SERIES[i] - high(sum, f);
    return sum;
}

// 1 - log2(1 + f), by 2^FRACTION.
inline int32_t one_less_log2(uint32_t f, uint32_t ratio) {
    return static_cast<int32_t>(high((1u << 31) - (f >> 1), ratio) >> 5);
}

// Bits of `yes` where `mask` has ones. A branch would keep the loops from being vectorised.
inline uint32_t select(uint32_t mask, uint32_t yes, uint32_t no) {
    return (yes & mask) | (no & ~mask);
}

// -ln(-ln u), u = (word + 1/2) / 2^32.
inline float gumbel(uint32_t word) {
    const uint32_t upper = static_cast<uint32_t>(static_cast<int32_t>(word) >> 31);
    const uint32_t rest = word ^ upper;
    const float p = static_cast<float>(static_cast<int32_t>(rest)) + 0.5f;
    const uint32_t f = select(upper, ~(rest << 1), bits_of(p) << 9), r = ratio(f);
    const int32_t exponent = static_cast<int32_t>(bits_of(p) >> 23);
    const int32_t low = ((158 - exponent) << FRACTION) + one_less_log2(f, r);
    const float above = p * static_cast<float>(static_cast<int32_t>(r));
    const float below = static_cast<float>(low) * 0x1p37f;
    const uint32_t e = select(upper, bits_of(above), bits_of(below));  // -log2 u, by 2^62
    const int32_t whole = SHIFT + 188 - static_cast<int32_t>(e >> 23);
    const int32_t log2 = (whole << FRACTION) + one_less_log2(e << 9, ratio(e << 9));
    const uint32_t fixed = high(static_cast<uint32_t>(log2), LN2);
    return static_cast<float>(static_cast<int32_t>(fixed) - OFFSET) * 0x1p-25f;
}

// The random words of LANES blocks from `first` on, in the order of the ids.
inline void random_words(const RsdDraw& d, uint32_t first, WordVec* words) {
    uint32_t c[4][LANES] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < LANES; ++i) {
        uint32_t c0 = d.position, c1 = d.num_steps, c2 = (first + i) << 8 | d.purpose,
                 c3 = d.sample;
        philox(c0, c1, c2, c3, d.seed);
        c[0][i] = c0, c[1][i] = c1, c[2][i] = c2, c[3][i] = c3;
    }
    WordVec v[4], even[2], odd[2];
    __builtin_memcpy(v, c, sizeof v);
    interleave(v[0], v[2], even);
    interleave(v[1], v[3], odd);
    interleave(even[0], odd[0], words);
    interleave(even[1], odd[1], words + 2);
}

// A little more than the noise of each word: -ln min(u, 1 - u), by a chord of the logarithm.
inline Vec noise_bound(WordVec word) {
    const IntVec rest = (IntVec)word ^ ((IntVec)word >> 31);
    const IntVec bits = (IntVec)(__builtin_convertvector(rest, Vec) + 0.5f);
    return 110.211f - __builtin_convertvector(bits, Vec) * 8.262958e-8f;
}

// Most ids cannot win whatever their word is, most others not with the word they have: logarithms
// are left to the few that can.
void draw(const RsdDraw& d) {
    float best = -__builtin_inff();
    int64_t token = -1;
    for (int64_t id = 0; id < d.num_ids; id += IDS) {
        Vec score[4];
        if (id + IDS <= d.num_ids) {
            for (int q = 0; q < 4; ++q) score[q] = load(d.score + id + q * LANES);
        } else {
            float part[IDS];
            for (int64_t i = 0; i < IDS; ++i) {
                part[i] = id + i < d.num_ids ? d.score[id + i] : -__builtin_inff();
            }
            for (int q = 0; q < 4; ++q) score[q] = load(part + q * LANES);
        }
        IntVec may{};
        for (int q = 0; q < 4; ++q) may |= score[q] > best - MOST_NOISE;
        if (!any(may)) continue;
        WordVec words[4];
        random_words(d, static_cast<uint32_t>(id / 4), words);
        may = IntVec{};
        for (int q = 0; q < 4; ++q) may |= score[q] + noise_bound(words[q]) > best;
        if (!any(may)) continue;
        uint32_t word[IDS];
        float sum[IDS];
        __builtin_memcpy(word, words, sizeof word);
        __builtin_memcpy(sum, score, sizeof sum);
        for (int64_t i = 0; i < IDS; ++i) sum[i] += gumbel(word[i]);
        for (int64_t i = 0; i < IDS; ++i) {
            if (sum[i] > best) best = sum[i], token = id + i;
        }
    }
    *d.token = token;
    *d.best = best;
}

}  // namespace

#endif  // RSD_CPU_DRAW_H_
