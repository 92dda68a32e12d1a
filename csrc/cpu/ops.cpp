#include "ops.h"

namespace {

constexpr int64_t OUTPUT_UNIT = 48;   // whole tiles of every shape, and no cache line in two shares
constexpr int64_t EXP_PRODUCTS = 16;  // about what an exponential costs
constexpr int64_t QUANTISED_PRODUCTS = 64;  // about what rounding an element costs
constexpr int64_t QUANTISED_BLOCK = 32;
constexpr int64_t BLOCK_UNIT = 64;  // whole vectors of blocks, and of cache lines

int64_t ceil_div(int64_t number, int64_t divisor) { return (number + divisor - 1) / divisor; }

// The shares of all sequences and K/V heads in one fixed order.
class Shares {
  public:
    Shares(const RsdAttention& a, int64_t most) : a_(a), most_(most) { enter_sequence(); }

    int64_t count() const {
        int64_t shares = 0;
        for (int64_t s = 0; s < a_.num_seqs; ++s) {
            shares += ceil_div(queries_of(s), most_) * a_.num_kv_heads;
        }
        return shares;
    }

    // The share with this number; a thread's numbers rise. False past the last one.
    bool find(int64_t number, AttentionShare& share) {
        while (seq_ < a_.num_seqs && number >= begin_ + tiles_ * a_.num_kv_heads) {
            begin_ += tiles_ * a_.num_kv_heads;
            ++seq_;
            enter_sequence();
        }
        if (seq_ >= a_.num_seqs) return false;
        const int64_t inside = number - begin_;
        const int64_t first = inside % tiles_ * most_;
        const int64_t left = queries_of(seq_) - first;
        share = {seq_, inside / tiles_, first, left < most_ ? left : most_};
        return true;
    }

  private:
    int64_t queries_of(int64_t seq) const {
        const int64_t rows = a_.seq_start[seq + 1] - a_.seq_start[seq];
        return rows * (a_.num_q_heads / a_.num_kv_heads);
    }

    void enter_sequence() {
        if (seq_ < a_.num_seqs) tiles_ = ceil_div(queries_of(seq_), most_);
    }

    const RsdAttention& a_;
    const int64_t most_;
    int64_t seq_ = 0, begin_ = 0, tiles_ = 0;
};

}  // namespace

int64_t work_of(const RsdProduct& p) {
    return (p.num_rows + FLOAT_READ) * p.num_outputs * p.num_inputs;
}

int64_t work_of(const RsdEmbed& e) { return e.num_rows * e.width; }

int64_t work_of(const RsdNorm& n) { return 2 * n.num_rows * n.width; }

int64_t work_of(const RsdSiluMul& s) { return s.num_rows * s.width * EXP_PRODUCTS; }

int64_t work_of(const RsdRopeWrite& w) {
    return 2 * w.num_rows * (w.num_q_heads + 2 * w.num_kv_heads) * w.head_dim;
}

int64_t work_of(const RsdAttention& a) {
    int64_t keys = 0;
    for (int64_t s = 0; s < a.num_seqs; ++s) {
        keys += (a.seq_start[s + 1] - a.seq_start[s]) * static_cast<int64_t>(a.seq_kv_len[s]);
    }
    return 2 * keys * a.num_q_heads * a.head_dim;
}

int64_t work_of(const RsdQuantise& q) {
    return q.matrix.num_outputs * q.num_inputs * QUANTISED_PRODUCTS;
}

void Runner::product(const RsdProduct& p) const {
    team.ranges(p.num_outputs, OUTPUT_UNIT, work_of(p),
                [&](int64_t first, int64_t last) { kernels.product(p, first, last); });
}

void Runner::embed(const RsdEmbed& e) const {
    team.ranges(e.num_rows, 1, work_of(e),
                [&](int64_t first, int64_t last) { kernels.embed(e, first, last); });
}

void Runner::norm(const RsdNorm& n) const {
    team.ranges(n.num_rows, 1, work_of(n),
                [&](int64_t first, int64_t last) { kernels.norm(n, first, last); });
}

void Runner::silu_mul(const RsdSiluMul& s) const {
    team.ranges(s.width, OUTPUT_UNIT, work_of(s),
                [&](int64_t first, int64_t last) { kernels.silu_mul(s, first, last); });
}

void Runner::gate_up(const RsdProduct& p, const RsdSiluMul& s) const {
    team.ranges(s.width, OUTPUT_UNIT, work_of(p), [&](int64_t first, int64_t last) {
        kernels.product(p, first, last);
        kernels.product(p, s.width + first, s.width + last);
        kernels.silu_mul(s, first, last);
    });
}

void Runner::rope_write(const RsdRopeWrite& w) const {
    team.ranges(w.num_rows, 1, work_of(w),
                [&](int64_t first, int64_t last) { kernels.rope_write(w, first, last); });
}

void Runner::attention(const RsdAttention& a) const {
    Shares shares(a, kernels.attention_queries);
    team.each(shares.count(), [&](int64_t number) {
        AttentionShare share;
        if (shares.find(number, share)) kernels.attend(a, share);
    });
}

bool Runner::quantise(const RsdQuantise& q) const {
    const int64_t blocks = q.matrix.num_outputs * q.num_inputs / QUANTISED_BLOCK;
    bool fits = true;
    team.ranges(blocks, BLOCK_UNIT, work_of(q),
                [&](int64_t first, int64_t last) { fits &= kernels.quantise(q, first, last); });
    return fits;
}

int32_t check_embed(const RsdEmbed& e) {
    for (int64_t r = 0; r < e.num_rows; ++r) {
        if (e.token[r] < 0 || e.token[r] >= e.table.num_outputs) return RSD_CPU_ERROR_TOKEN;
    }
    return RSD_CPU_SUCCESS;
}

int32_t check_rope_write(const RsdRopeWrite& w) {
    for (int64_t r = 0; r < w.num_rows; ++r) {
        const int64_t position = w.position ? w.position[r] : r;
        if (position < 0 || position >= w.num_positions) return RSD_CPU_ERROR_POSITION;
        if (w.page[r] < 0) continue;
        if (w.page[r] >= w.pages.num_pages) return RSD_CPU_ERROR_PAGE;
        if (w.offset[r] < 0 || w.offset[r] >= w.pages.tokens_per_page) return RSD_CPU_ERROR_PAGE;
    }
    return RSD_CPU_SUCCESS;
}

int32_t check_attention(const RsdAttention& a) {
    if (a.head_dim > MAX_HEAD_DIM || a.num_kv_heads < 1 || a.num_q_heads % a.num_kv_heads != 0) {
        return RSD_CPU_ERROR_SHAPE;
    }
    for (int64_t s = 0; s < a.num_seqs; ++s) {
        const int64_t start = a.seq_start[s], end = a.seq_start[s + 1];
        if (start < 0 || end < start || end > a.num_rows) return RSD_CPU_ERROR_SEQUENCE;
        if (start == end) continue;
        const int64_t slot = a.seq_slot[s], kv_len = a.seq_kv_len[s];
        if (slot < 0 || slot >= a.num_slots || kv_len < end - start) return RSD_CPU_ERROR_SEQUENCE;
        const int64_t pages = ceil_div(kv_len, a.pages.tokens_per_page);
        if (pages > a.pages_per_slot) return RSD_CPU_ERROR_PAGE;
        const int32_t* table = a.page_table + slot * a.table_stride;
        for (int64_t page = 0; page < pages; ++page) {
            if (table[page] < 0 || table[page] >= a.pages.num_pages) return RSD_CPU_ERROR_PAGE;
        }
    }
    return RSD_CPU_SUCCESS;
}
