// Philox4x32-10 (Salmon et al., SC 2011): random words that depend on a counter and a key alone.

#ifndef RSD_CPU_PHILOX_H_
#define RSD_CPU_PHILOX_H_

#include <stdint.h>

namespace {

inline uint32_t high(uint32_t a, uint32_t b) { return (uint64_t{a} * b) >> 32; }

// Turns the counter into its random words.
inline void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint32_t high0 = high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    }
}

}  // namespace

#endif  // RSD_CPU_PHILOX_H_
