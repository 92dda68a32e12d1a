// Attention of some queries over the pages of their sequence: keys block by block, with a running
// maximum and sum (FlashAttention, Dao et al., 2022). Blocks begin at fixed keys, so a query's
// result depends on its own position only, not on the rows it came with.

#ifndef RSD_CPU_ATTENTION_H_
#define RSD_CPU_ATTENTION_H_

#include "kernels.h"
#include "product.h"
#include "vector.h"

namespace {

constexpr int BLOCK_KEYS = 64;
constexpr float NEVER = -__builtin_inff();

// Queries that are answered together, with the running sums of each.
struct Queries {
    const float* q[GROUP_ROWS];
    float* out[GROUP_ROWS];
    int64_t first_key[GROUP_ROWS], last_key[GROUP_ROWS];  // both included
    float top[GROUP_ROWS], weight_sum[GROUP_ROWS];
    alignas(64) float values[GROUP_ROWS][MAX_HEAD_DIM];
};

// Keys first..first + count of one K/V head, and the weight that each query gives them.
struct Block {
    int64_t first, count;
    const float* k[BLOCK_KEYS];
    const float* v[BLOCK_KEYS];
    alignas(64) float weight[GROUP_ROWS][BLOCK_KEYS];
};

inline void locate(const RsdAttention& a, const AttentionShare& share, int64_t first, int64_t count,
                   Block& block) {
    const RsdPages& pages = a.pages;
    const int32_t* table = a.page_table + a.seq_slot[share.seq] * a.table_stride;
    const int64_t head = share.kv_head * pages.head_stride;
    int64_t page = first / pages.tokens_per_page, token = first % pages.tokens_per_page;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t place = table[page] * pages.page_stride + token * pages.token_stride + head;
        block.k[i] = pages.k + place;
        block.v[i] = pages.v + place;
        if (++token == pages.tokens_per_page) token = 0, ++page;
    }
    block.first = first;
    block.count = count;
}

template <int QUERIES>
inline void score(const RsdAttention& a, const Queries& queries, Block& block) {
    constexpr int KEYS = 4;
    float sums[whole_vectors(QUERIES * KEYS)];
    int64_t key = 0;
    for (; key + KEYS <= block.count; key += KEYS) {
        dot_tile<QUERIES, KEYS, Plain<float>>(queries.q, block.k + key, a.head_dim, 0, sums);
        for (int i = 0; i < QUERIES; ++i) {
            for (int o = 0; o < KEYS; ++o) block.weight[i][key + o] = sums[i * KEYS + o] * a.scale;
        }
    }
    for (; key < block.count; ++key) {
        dot_tile<QUERIES, 1, Plain<float>>(queries.q, block.k + key, a.head_dim, 0, sums);
        for (int i = 0; i < QUERIES; ++i) block.weight[i][key] = sums[i] * a.scale;
    }
}

inline float lane_max(Vec v) {
    float lanes[LANES], top = NEVER;
    store(lanes, v);
    for (int i = 0; i < LANES; ++i) top = lanes[i] > top ? lanes[i] : top;
    return top;
}

// Masks the keys that the query may not see; returns its highest score so far.
inline float mask(const Queries& queries, Block& block, int query) {
    float* weight = block.weight[query];
    const int64_t seen = queries.last_key[query] + 1 - block.first;
    const int32_t low = static_cast<int32_t>(queries.first_key[query] - block.first);
    const int32_t high = static_cast<int32_t>(seen < block.count ? seen : block.count);
    IntVec key{};
    for (int lane = 0; lane < LANES; ++lane) key[lane] = lane;
    Vec top = broadcast(queries.top[query]);
    for (int i = 0; i < BLOCK_KEYS; i += LANES, key += LANES) {
        const Vec visible = (key >= low) & (key < high) ? load(weight + i) : broadcast(NEVER);
        store(weight + i, visible);
        top = visible > top ? visible : top;
    }
    return lane_max(top);
}

// Turns scores into weights relative to the new maximum; returns the factor for older sums.
inline float weigh(Queries& queries, Block& block, int query) {
    float* weight = block.weight[query];
    const float top = mask(queries, block, query);
    if (top == NEVER) {  // it has not seen a key yet
        for (int i = 0; i < BLOCK_KEYS; ++i) weight[i] = 0.0f;
        return 1.0f;
    }
    Vec sum{};
    for (int i = 0; i < BLOCK_KEYS; i += LANES) {
        const Vec part = exp(load(weight + i) - top);
        store(weight + i, part);
        sum += part;
    }
    const float older = exp(broadcast(queries.top[query] - top))[0];
    queries.top[query] = top;
    queries.weight_sum[query] = queries.weight_sum[query] * older + lane_sum(sum);
    return older;
}

// values = values * older + weight v, for VECTORS vectors of the head from `from` on.
template <int QUERIES, int VECTORS>
inline void add_values(Queries& queries, const Block& block, const float* older, int64_t from) {
    Vec acc[QUERIES][VECTORS];
    for (int i = 0; i < QUERIES; ++i) {
        for (int j = 0; j < VECTORS; ++j) {
            acc[i][j] = load(&queries.values[i][from + j * LANES]) * older[i];
        }
    }
    for (int64_t key = 0; key < block.count; ++key) {
        Vec v[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) v[j] = load(block.v[key] + from + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < QUERIES; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) acc[i][j] += v[j] * block.weight[i][key];
        }
    }
    for (int i = 0; i < QUERIES; ++i) {
        for (int j = 0; j < VECTORS; ++j) store(&queries.values[i][from + j * LANES], acc[i][j]);
    }
}

template <int QUERIES>
inline void add_block(const RsdAttention& a, Queries& queries, Block& block) {
    score<QUERIES>(a, queries, block);
    float older[QUERIES];
    for (int i = 0; i < QUERIES; ++i) older[i] = weigh(queries, block, i);
    constexpr int WIDE = RSD_LANES == 16 ? 4 : 2;
    int64_t d = 0;
    for (; d + WIDE * LANES <= a.head_dim; d += WIDE * LANES) {
        add_values<QUERIES, WIDE>(queries, block, older, d);
    }
    for (; d + LANES <= a.head_dim; d += LANES) add_values<QUERIES, 1>(queries, block, older, d);
    for (; d < a.head_dim; ++d) {
        for (int i = 0; i < QUERIES; ++i) {
            float value = queries.values[i][d] * older[i];
            for (int64_t key = 0; key < block.count; ++key) {
                value += block.v[key][d] * block.weight[i][key];
            }
            queries.values[i][d] = value;
        }
    }
}

template <int QUERIES>
void attend_queries(const RsdAttention& a, const AttentionShare& share) {
    Queries queries;
    const int64_t heads = a.num_q_heads / a.num_kv_heads;
    const int64_t start = a.seq_start[share.seq], num_rows = a.seq_start[share.seq + 1] - start;
    int64_t first = INT64_MAX, last = 0;
    for (int i = 0; i < QUERIES; ++i) {
        const int64_t row = (share.first_query + i) / heads;
        const int64_t head = share.kv_head * heads + (share.first_query + i) % heads;
        const int64_t position = a.seq_kv_len[share.seq] - num_rows + row;
        const int64_t oldest = a.sliding_window ? position + 1 - a.sliding_window : 0;
        queries.q[i] = a.q + (start + row) * a.q_stride + head * a.head_dim;
        queries.out[i] = a.out + (start + row) * a.out_stride + head * a.head_dim;
        queries.first_key[i] = oldest > 0 ? oldest : 0;
        queries.last_key[i] = position;
        queries.top[i] = NEVER;
        queries.weight_sum[i] = 0.0f;
        for (int64_t d = 0; d < a.head_dim; ++d) queries.values[i][d] = 0.0f;
        first = queries.first_key[i] < first ? queries.first_key[i] : first;
        last = position > last ? position : last;
    }
    Block block;
    for (int64_t key = first / BLOCK_KEYS * BLOCK_KEYS; key <= last; key += BLOCK_KEYS) {
        const int64_t left = last + 1 - key;
        locate(a, share, key, left < BLOCK_KEYS ? left : BLOCK_KEYS, block);
        add_block<QUERIES>(a, queries, block);
    }
    for (int i = 0; i < QUERIES; ++i) {
        const float scale = 1.0f / queries.weight_sum[i];
        for (int64_t d = 0; d < a.head_dim; ++d) queries.out[i][d] = queries.values[i][d] * scale;
    }
}

void attend(const RsdAttention& a, const AttentionShare& share) {
    switch (share.num_queries) {
        case 1: return attend_queries<1>(a, share);
        case 2: return attend_queries<2>(a, share);
        case 3: return attend_queries<3>(a, share);
        case 4: return attend_queries<4>(a, share);
#if RSD_LANES == 16
        case 5: return attend_queries<5>(a, share);
        case 6: return attend_queries<6>(a, share);
#endif
    }
}

}  // namespace

#endif  // RSD_CPU_ATTENTION_H_
