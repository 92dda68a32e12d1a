// The tokens that a byte-level tokenizer makes of a word. Twin: rsd_kernels/bridge/merge_twin.py.

#ifndef RSD_CPU_CONTROL_WORDS_H_
#define RSD_CPU_CONTROL_WORDS_H_

#include <vector>

#include "../rsd_cpu.h"
#include "enums.h"

using Tokens = std::vector<int32_t>;

inline int32_t bytes_of(const RsdTables& tables, int32_t token) {
    return tables.token_start[token + 1] - tables.token_start[token];
}

// Tokens first..last as bytes.
std::vector<uint8_t> bytes_of(const RsdTables& tables, const int32_t* first, const int32_t* last);

// Byte-pair encoding of one word: the pair of lowest rank is merged, leftmost first.
Tokens merge_bytes(const RsdMerges& merges, const std::vector<uint8_t>& bytes);

// Writes the last word of `tokens` as the tokenizer would, once its delimiter is off.
void retokenise_end(const RsdTables& tables, const RsdMerges& merges, Tokens& tokens);

#endif  // RSD_CPU_CONTROL_WORDS_H_
