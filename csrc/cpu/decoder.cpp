// All layers of a decoder over the rows of one pass.

#include "ops.h"

namespace {

class Forward {
  public:
    Forward(const RsdDecoder& decoder, const RsdPass& pass)
        : d_(decoder), pass_(pass), rows_(pass.seq_start[pass.num_seqs]) {}

    int32_t check() const {
        if (rows_ < 0 || rows_ > pass_.num_rows || rows_ > d_.max_rows) return RSD_CPU_ERROR_SHAPE;
        for (int64_t r = 0; r < rows_; ++r) {
            if (pass_.token[r] < 0 || pass_.token[r] >= d_.vocab_size) return RSD_CPU_ERROR_TOKEN;
        }
        const int32_t code = check_rope_write(rope_write(d_.layers[0]));
        return code == RSD_CPU_SUCCESS ? check_attention(attention(d_.layers[0])) : code;
    }

    int64_t work() const {
        const int64_t inter = d_.intermediate_size;
        const int64_t weights = d_.hidden_size * (qkv_width() + q_width() + 3 * inter);
        const int64_t layer = (rows_ + FLOAT_READ) * weights + work_of(attention(d_.layers[0]));
        return d_.num_layers * layer;
    }

    // Called by every thread of the team.
    void layers(const Runner& run) const {
        run.embed(
            {d_.hidden, d_.embedding, pass_.token, rows_, d_.hidden_size, d_.embedding_scale});
        for (int64_t i = 0; i < d_.num_layers; ++i) layer(run, d_.layers[i]);
    }

  private:
    void layer(const Runner& run, const RsdLayer& w) const {
        const int64_t hidden = d_.hidden_size, inter = d_.intermediate_size;
        run.norm(norm(w.input_norm));
        run.product(product(d_.qkv, d_.normed, w.qkv, qkv_width(), hidden));
        run.rope_write(rope_write(w));
        run.attention(attention(w));
        run.product(added(product(d_.hidden, d_.attended, w.o, hidden, q_width())));
        run.norm(norm(w.post_norm));
        run.gate_up(product(d_.gate_up, d_.normed, w.gate_up, 2 * inter, hidden),
                    {d_.gated, d_.gate_up, rows_, inter});
        run.product(added(product(d_.hidden, d_.gated, w.down, hidden, inter)));
    }

    int64_t q_width() const { return d_.num_q_heads * d_.head_dim; }
    int64_t qkv_width() const { return (d_.num_q_heads + 2 * d_.num_kv_heads) * d_.head_dim; }

    RsdNorm norm(const float* weight) const {
        const int64_t width = d_.hidden_size;
        return {d_.normed, d_.hidden, weight, nullptr, rows_, width, width, width, d_.eps};
    }

    RsdProduct product(float* y, const float* x, const RsdWeight& weight, int64_t num_outputs,
                       int64_t num_inputs) const {
        return {y, x, &weight, nullptr, rows_, num_outputs, num_inputs, num_outputs, num_inputs, 0};
    }

    // Adds the product to what y holds.
    static RsdProduct added(RsdProduct p) {
        p.residual = p.y;
        p.residual_stride = p.y_stride;
        return p;
    }

    RsdPages pages(const RsdLayer& w) const {
        RsdPages found = d_.pages;
        found.k = w.k_pages;
        found.v = w.v_pages;
        return found;
    }

    RsdRopeWrite rope_write(const RsdLayer& w) const {
        return {d_.qkv,          pages(w),         pass_.page,
                pass_.offset,    pass_.position,   w.cos,
                w.sin,           w.q_norm,         w.k_norm,
                rows_,           d_.num_positions, d_.num_q_heads,
                d_.num_kv_heads, d_.head_dim,      qkv_width(),
                d_.eps};
    }

    RsdAttention attention(const RsdLayer& w) const {
        return {d_.attended,
                d_.qkv,
                pages(w),
                pass_.page_table,
                pass_.seq_slot,
                pass_.seq_start,
                pass_.seq_kv_len,
                rows_,
                pass_.num_seqs,
                pass_.num_slots,
                pass_.pages_per_slot,
                pass_.table_stride,
                d_.num_q_heads,
                d_.num_kv_heads,
                d_.head_dim,
                q_width(),
                qkv_width(),
                w.sliding_window,
                d_.scale};
    }

    const RsdDecoder& d_;
    const RsdPass& pass_;
    const int64_t rows_;  // rows of sequences; the rest is padding
};

}  // namespace

int32_t run_decoder(const Kernels& kernels, const RsdDecoder& d, const RsdPass& pass,
                    int64_t num_threads) {
    const Forward forward(d, pass);
    const int32_t code = forward.check();
    if (code != RSD_CPU_SUCCESS) return code;
    in_team(forward.work(), num_threads,
            [&](Team& team) { forward.layers(Runner{kernels, team}); });
    return RSD_CPU_SUCCESS;
}
