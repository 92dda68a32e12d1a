// The C ABI of the CPU library: a decoder's forward over raw pointers. Nothing here needs torch or
// Python, so the library builds without either. Everything is float32; only matrices may be stored
// otherwise, and are expanded to float32 before they are multiplied.
//
// Strides count elements; where none is named, a tensor is contiguous. Every function returns
// RSD_CPU_SUCCESS or one of the codes below, allocates nothing and raises nothing. At most
// `num_threads` threads of the process's OpenMP pool take part, and only where there is work for
// them; the result does not depend on how many. A row's result has the same bits whatever other
// rows come with it.

#ifndef RSD_CPU_H_
#define RSD_CPU_H_

#include <stdint.h>

#include "control/columns.h"

// Raised with every change to a signature or to the meaning of an argument; the loader refuses a
// library of any other version.
#define RSD_CPU_ABI_VERSION 8

#define RSD_CPU_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum {
    RSD_CPU_SUCCESS = 0,
    RSD_CPU_ERROR_SHAPE = -1,     // a size is out of the range the function states
    RSD_CPU_ERROR_TOKEN = -2,     // a token id is not in the vocabulary
    RSD_CPU_ERROR_POSITION = -3,  // a position is past the rope tables
    RSD_CPU_ERROR_PAGE = -4,      // a page or an offset is not in the pool
    RSD_CPU_ERROR_SEQUENCE = -5,  // a sequence has rows that its length does not cover
    RSD_CPU_ERROR_ISA = -6,       // this machine cannot run that instruction set
    RSD_CPU_ERROR_VALUE = -7,     // a value is not finite, or beyond the range of a half
};

// How a row of a matrix is stored. From Q4_0 on these are blocks of GGUF, of 32 elements and, from
// Q4_K on, 256: a row is a whole number of them.
enum {
    RSD_CPU_FLOAT32 = 0,
    RSD_CPU_BFLOAT16 = 1,
    RSD_CPU_FLOAT16 = 2,
    RSD_CPU_Q4_0 = 3,
    RSD_CPU_Q4_1 = 4,
    RSD_CPU_Q5_0 = 5,
    RSD_CPU_Q5_1 = 6,
    RSD_CPU_Q8_0 = 7,
    RSD_CPU_Q4_K = 8,
    RSD_CPU_Q5_K = 9,
    RSD_CPU_Q6_K = 10,
};

// Rows of one type, one after another without gaps.
typedef struct {
    const void* rows;
    int64_t num_outputs, type;
} RsdMatrix;

// rows = the matrix, of float32, bfloat16 or float16, rounded to Q8_0 or Q4_1
typedef struct {
    uint8_t* rows;
    RsdMatrix matrix;
    int64_t num_inputs;  // a multiple of 32
    int64_t type;        // RSD_CPU_Q8_0 or RSD_CPU_Q4_1
} RsdQuantise;

// W and bias: the outputs of the parts, one after another. q, k and v may be stored differently.
typedef struct {
    RsdMatrix parts[3];
    int64_t num_parts;
    const float* bias;  // [num_outputs] or null
} RsdWeight;

// y = x weightT + bias + residual
typedef struct {
    float* y;                 // [num_rows, num_outputs], rows y_stride apart
    const float* x;           // [num_rows, num_inputs], rows x_stride apart
    const RsdWeight* weight;  // [num_outputs, num_inputs]
    const float*
        residual;  // [num_rows, num_outputs], rows residual_stride apart, or null; may be y
    int64_t num_rows, num_outputs, num_inputs;
    int64_t y_stride, x_stride, residual_stride;
} RsdProduct;

// out[r] = table[token[r]] * scale
typedef struct {
    float* out;  // [num_rows, width]
    RsdMatrix table;
    const int32_t* token;  // [num_rows], each in 0..table.num_outputs
    int64_t num_rows, width;
    float scale;
} RsdEmbed;

// y = x / sqrt(mean(x * x) + eps) * weight
typedef struct {
    float* y;                // [num_rows, width], rows y_stride apart; may be x
    const float* x;          // [.., width], rows x_stride apart
    const float* weight;     // [width]
    const int32_t* row_end;  // null: row i is row i of x; else row row_end[i] - 1, or 0
    int64_t num_rows, width, y_stride, x_stride;
    float eps;
} RsdNorm;

// gated[r, n] = silu(gate_up[r, n]) * gate_up[r, width + n]
typedef struct {
    float* gated;          // [num_rows, width]
    const float* gate_up;  // [num_rows, 2 * width]
    int64_t num_rows, width;
} RsdSiluMul;

// K and V of one layer: [num_pages, tokens_per_page, num_kv_heads, head_dim], the
// last contiguous. Offsets are 64 bits wide.
typedef struct {
    float* k;
    float* v;
    int64_t page_stride, token_stride, head_stride;
    int64_t num_pages, tokens_per_page;
} RsdPages;

// Each head of q and k normed if weights are given, and rotated; k and v stored.
typedef struct {
    float* qkv;  // [num_rows, num_q_heads + 2 * num_kv_heads, head_dim], rows qkv_stride apart
    RsdPages pages;
    const int32_t* page;      // [num_rows]; negative: not stored
    const int32_t* offset;    // [num_rows]
    const int32_t* position;  // [num_rows] rows of cos and sin; null: row n
    const float* cos;         // [num_positions, head_dim], halves alike
    const float* sin;         // [num_positions, head_dim], first half negated
    const float* q_norm;      // [head_dim] or null
    const float* k_norm;      // [head_dim] or null
    int64_t num_rows, num_positions, num_q_heads, num_kv_heads, head_dim, qkv_stride;
    float eps;
} RsdRopeWrite;

// out = softmax(q kT * scale) v of every row over the keys of its sequence up to itself. Memory
// past a sequence's length is never read. Rows that belong to no sequence are left alone.
typedef struct {
    float* out;      // [num_rows, num_q_heads, head_dim], rows out_stride apart
    const float* q;  // [num_rows, num_q_heads, head_dim], rows q_stride apart
    RsdPages pages;
    const int32_t* page_table;  // [num_slots, pages_per_slot], rows table_stride apart
    const int32_t* seq_slot;    // [num_seqs]
    const int32_t* seq_start;   // [num_seqs + 1]
    const int32_t* seq_kv_len;  // [num_seqs]
    int64_t num_rows, num_seqs, num_slots, pages_per_slot, table_stride;
    int64_t num_q_heads, num_kv_heads, head_dim;  // head_dim <= 256
    int64_t out_stride, q_stride;
    int64_t sliding_window;  // tokens a row sees, itself included; 0: all
    float scale;
} RsdAttention;

// token = the first id with the largest score + g, g = -ln(-ln u). The u of an id depends on that
// id and on what the draw is for, not on the scores. No id has a score above minus infinity: -1.
typedef struct {
    int64_t* token;
    float* best;         // its score + g
    const float* score;  // [num_ids], none infinite or NaN, but minus infinity where an id is out
    int64_t num_ids;     // < 2^26
    uint64_t seed;
    uint32_t sample, num_steps, position, purpose;  // purpose < 256
} RsdDraw;

// Weights of one layer as in RsdProduct and RsdNorm; both head norms may be null.
typedef struct {
    const float* input_norm;
    RsdWeight qkv;
    const float *q_norm, *k_norm;
    RsdWeight o;
    const float* post_norm;
    RsdWeight gate_up, down;
    float *k_pages, *v_pages;
    const float *cos, *sin;  // [num_positions, head_dim]
    int64_t sliding_window;
} RsdLayer;

// A decoder and its activations: `hidden` [max_rows, hidden_size] and so on, contiguous.
typedef struct {
    const RsdLayer* layers;
    RsdMatrix embedding;  // [vocab_size, hidden_size]
    float *hidden, *normed, *qkv, *attended, *gate_up, *gated;
    int64_t num_layers, vocab_size, hidden_size, intermediate_size, num_positions, max_rows;
    int64_t num_q_heads, num_kv_heads, head_dim;
    RsdPages pages;         // k and v are those of the layers
    float eps, scale;       // of the norms, and of the attention scores
    float embedding_scale;  // multiplies the rows of the embedding
} RsdDecoder;

// The packed rows of one pass. Rows from seq_start[num_seqs] on are padding and are never read.
typedef struct {
    const int32_t *token, *position, *page, *offset;   // [num_rows]
    const int32_t *seq_slot, *seq_start, *seq_kv_len;  // [num_seqs], [num_seqs + 1], [num_seqs]
    const int32_t* page_table;                         // [num_slots, pages_per_slot]
    int64_t num_rows, num_seqs, num_slots, pages_per_slot, table_stride;
} RsdPass;

RSD_CPU_API int32_t rsd_cpu_abi_version(void);

// Hash of the source files the library was built from, as the build computed it.
RSD_CPU_API const char* rsd_cpu_source_hash(void);

// Text for any code a function of this library returned. The pointer stays valid.
RSD_CPU_API const char* rsd_cpu_error_string(int32_t code);

// The instruction set in use: the best one that this machine has and the library was compiled for.
RSD_CPU_API const char* rsd_cpu_isa(void);

// Switches to another one ("avx512", "avx2", "baseline"), so that each can be tested.
RSD_CPU_API int32_t rsd_cpu_choose_isa(const char* name);

RSD_CPU_API int32_t rsd_cpu_product(const RsdProduct* product, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_embed(const RsdEmbed* embed, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_norm(const RsdNorm* norm, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_silu_mul(const RsdSiluMul* silu_mul, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_rope_write(const RsdRopeWrite* rope_write, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_attention(const RsdAttention* attention, int32_t num_threads);
RSD_CPU_API int32_t rsd_cpu_draw(const RsdDraw* draw);  // by one thread
RSD_CPU_API int32_t rsd_cpu_quantise(const RsdQuantise* quantise, int32_t num_threads);

// All layers over the rows of a pass. Afterwards `hidden` holds the rows before the final norm, and
// the pages hold their K and V. Everything is checked before anything is written.
RSD_CPU_API int32_t rsd_cpu_decoder(const RsdDecoder* decoder, const RsdPass* pass,
                                    int32_t num_threads);

// The loop ops, each with the results of its twin bit for bit, by one thread. They trust what they
// are given, as kernels do, return no code, and may allocate. Slots, pass and tables are those of a
// running batch.

// Tokens that a page holds, by role.
typedef struct {
    int64_t of_role[3];
} RsdPageSizes;

// In `place_token`: the twin has to draw this one, for it needs more than a temperature.
enum { RSD_CPU_NOT_SAMPLED = -2 };

RSD_CPU_API void rsd_cpu_guess(const RsdSlots* slots);
RSD_CPU_API void rsd_cpu_schedule(const RsdSlots* slots, const RsdBatch* batch,
                                  const RsdPageSizes* per_page, int32_t rule, int32_t prm_kv);
RSD_CPU_API void rsd_cpu_advance(const RsdSlots* slots, const RsdBatch* batch, int32_t role,
                                 int32_t prm_kv);

// Draws at the places of a pass from logits [num_places, num_ids], which it may overwrite. Returns
// how many places are left to the twin.
RSD_CPU_API int32_t rsd_cpu_sample(const RsdSlots* slots, const RsdBatch* batch, float* logits,
                                   int32_t num_ids, int32_t role);
RSD_CPU_API void rsd_cpu_append(const RsdSlots* slots, const RsdBatch* batch,
                                const RsdTables* tables, int32_t num_ids, int32_t role);
RSD_CPU_API void rsd_cpu_bridge(const RsdSlots* slots, const RsdTables* tables,
                                const RsdMerges* merges);
RSD_CPU_API void rsd_cpu_retokenise(const RsdSlots* slots, const RsdTables* tables,
                                    const RsdMerges* merges);  // null: steps wait for the host
RSD_CPU_API void rsd_cpu_end_step(const RsdSlots* slots, const RsdPageSizes* per_page);
RSD_CPU_API void rsd_cpu_decide(const RsdSlots* slots, const RsdBatch* batch, const float* rewards,
                                const RsdPageSizes* per_page);  // rewards: [num_seqs]

// A column [num_slots] of the state that forks get, of so many bytes a slot.
typedef struct {
    uint8_t* bytes;
    int64_t slot_bytes;
    int64_t used;  // what of a slot's bytes is copied, see below
} RsdForkedColumn;

enum {
    RSD_CPU_WHOLE = 0,
    RSD_CPU_CONTEXT = 1,      // as many tokens as the context has, and its guesses
    RSD_CPU_PRM_CONTEXT = 2,  // the same of the PRM's
    RSD_CPU_LOGPROBS = 3,     // all where the slot asks for logprobs, else nothing
};

// The pages of all models.
typedef struct {
    uint8_t* bytes;
    int64_t page_bytes;
} RsdPool;

RSD_CPU_API void rsd_cpu_fork(const RsdSlots* slots, const RsdForkedColumn* columns,
                              const RsdPool* pool, const RsdPageSizes* per_page,
                              int32_t num_columns, int32_t source, int32_t target);

#ifdef __cplusplus
}
#endif

#endif  // RSD_CPU_H_
