#include "words.h"

#include <algorithm>

namespace {

constexpr int64_t NO_MERGE = -1;

// Number of the merge of two tokens.
int64_t merge_of(const RsdMerges& merges, int32_t left, int32_t right) {
    const int64_t pair = left * (int64_t{1} << 32) + right;
    const int64_t* last = merges.merge_pair + merges.num_merges;
    const int64_t* found = std::lower_bound(merges.merge_pair, last, pair);
    return found != last && *found == pair ? found - merges.merge_pair : NO_MERGE;
}

}  // namespace

std::vector<uint8_t> bytes_of(const RsdTables& tables, const int32_t* first, const int32_t* last) {
    std::vector<uint8_t> bytes;
    for (; first < last; ++first) {
        const int32_t* range = tables.token_start + *first;
        bytes.insert(bytes.end(), tables.token_byte + range[0], tables.token_byte + range[1]);
    }
    return bytes;
}

Tokens merge_bytes(const RsdMerges& merges, const std::vector<uint8_t>& bytes) {
    Tokens symbols;
    for (const uint8_t byte : bytes) symbols.push_back(merges.byte_token[byte]);
    std::vector<int64_t> found;  // of each symbol with the next one
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        found.push_back(merge_of(merges, symbols[i], symbols[i + 1]));
    }
    const auto lower = [&](int64_t a, int64_t b) {
        if (a == NO_MERGE || b == NO_MERGE) return b == NO_MERGE && a != NO_MERGE;
        return merges.merge_rank[a] < merges.merge_rank[b];
    };
    while (!found.empty()) {
        const auto best = std::min_element(found.begin(), found.end(), lower);
        if (*best == NO_MERGE) break;
        const int64_t i = best - found.begin();
        symbols[i] = merges.merge_token[*best];
        symbols.erase(symbols.begin() + i + 1);
        found.erase(best);
        const auto count = static_cast<int64_t>(found.size());
        if (i < count) found[i] = merge_of(merges, symbols[i], symbols[i + 1]);
        if (i > 0) found[i - 1] = merge_of(merges, symbols[i - 1], symbols[i]);
    }
    return symbols;
}

void retokenise_end(const RsdTables& tables, const RsdMerges& merges, Tokens& tokens) {
    size_t start = tokens.size();
    while (start > 0 && merges.flags[tokens[start - 1]] & JOINS_NEXT) {
        if (!(merges.flags[tokens[--start]] & JOINS_PREVIOUS)) break;
    }
    if (tokens.size() - start < 2) return;
    const auto bytes = bytes_of(tables, tokens.data() + start, tokens.data() + tokens.size());
    if (bytes.size() > MAX_WORD_BYTES) return;
    const Tokens merged = merge_bytes(merges, bytes);
    tokens.resize(start);
    tokens.insert(tokens.end(), merged.begin(), merged.end());
}
