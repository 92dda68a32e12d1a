// The columns of the state, of a pass and of the vocabulary's tables, as addresses: 64 bits for
// each member, in the order of the named tuples of rsd_kernels/state/args.py. Shapes and meanings
// stand in rsd_kernels/state, in slots.py, rows.py and tables.py.

#ifndef RSD_CPU_CONTROL_COLUMNS_H_
#define RSD_CPU_CONTROL_COLUMNS_H_

#include <stdint.h>

typedef struct {
    int32_t* tokens;
    int32_t* length;
    int32_t* committed;
    int32_t* prompt_length;
    int32_t* length_limit;
    int32_t* prm_tokens;
    int32_t* prm_length;
    int32_t* prm_committed;
    int32_t* prm_keep;
    int32_t* kv_len;
    int32_t* page_table;
    int32_t* num_pages;
    int32_t* free_pages;
    int32_t* num_free;
    int32_t* page_owners;
    int32_t* page_stamp;
    int32_t* phase;
    int32_t* mode;
    int32_t* overflow_mode;
    int32_t* separate_contexts;
    int32_t* active;
    int32_t* generation;
    int32_t* arrival;
    int32_t* lacks_pages;
    int32_t* ended;
    int32_t* prompt_roles;
    int32_t* candidates;
    int32_t* group;
    int32_t* group_left;
    int32_t* num_steps;
    int32_t* stream_tokens;
    int32_t* told;
    int32_t* kept_from;
    int32_t* shortened;
    int32_t* max_steps;
    int32_t* max_step_tokens;
    int32_t* min_length;
    int32_t* finish;
    int32_t* step_source;
    float* confidence;
    int32_t* match_bytes;
    int32_t* delimiter_state;
    int32_t* stop_state;
    int32_t* stop_committed;
    int16_t* delimiter_moves;
    int16_t* stop_moves;
    int32_t* stop_tokens;
    int32_t* speculation;
    int32_t* guess_tokens;
    int32_t* guess_end;
    int32_t* guess_stop;
    int32_t* guess_source;
    int32_t* guess_rate;
    int32_t* guesses_at_rate;
    int32_t* step_guesses;
    int32_t* guesses_made;
    int32_t* guesses_kept;
    float* temperature;
    int32_t* top_k;
    float* top_p;
    float* min_p;
    float* repetition_penalty;
    int32_t* adjusts;
    float* presence_penalty;
    float* frequency_penalty;
    int32_t* num_biased;
    int32_t* biased_token;
    float* bias;
    int32_t* only_biased;
    int32_t* num_bad_words;
    int32_t* bad_words;
    int64_t* seed;
    int32_t* sample_index;
    int32_t* num_logprobs;
    int32_t* policy_kind;
    float* policy_a;
    float* policy_b;
    float* reward;
    float* token_logprob;
    int32_t* token_rank;
    float* top_logprob;
    int32_t* top_token;
    int32_t* tokens_read;
    int32_t* passes;
    int64_t* nanoseconds;
    int32_t* nan_rewards;
    int32_t* pass_role;
    int32_t* pass_body;
    int32_t* row_buckets;
    int32_t* num_rows;
    int32_t* num_seqs;
    int32_t* num_places;
    int64_t* pass_start;
    int32_t* running;
    int32_t* tick;
    int32_t* tick_cap;
    int64_t* tick_end;
    int64_t* idle_nanoseconds;
    int64_t* tick_nanoseconds;
    int32_t* role_wait;
    int32_t* last_role;
    int32_t* host_request;
    int32_t* log;
    int32_t* log_head;
    int32_t* log_end;
    int64_t num_slots, max_len, prm_max_len, num_columns, log_words, num_buckets;
} RsdSlots;

typedef struct {
    int32_t *token, *slot, *position, *page, *offset;
    int32_t *seq_slot, *seq_start, *seq_kv_len, *seq_complete, *seq_place;
    int32_t *place_row_end, *place_slot, *place_position, *place_token;
    int64_t max_rows, max_seqs, max_places;
} RsdBatch;

typedef struct {
    const uint8_t* token_byte;
    const int32_t *token_start, *prefix_entry, *prefix_start, *prefix_token, *prm_token;
    const int32_t *separator, *before_step;
    int64_t num_transient, as_written, num_separators, num_before;
} RsdTables;

typedef struct {
    const uint8_t* flags;
    const int32_t* byte_token;
    const int64_t* merge_pair;
    const int32_t *merge_rank, *merge_token;
    int64_t num_merges;
} RsdMerges;

#endif  // RSD_CPU_CONTROL_COLUMNS_H_
