// The transformer: weights, adapters, and the step that runs rows of several sequences through them.
//
// Owns scratch memory only; weights are the caller's mapping. Knows nothing of requests, text or files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "encoded_rows.h"
#include "kernels.h"
#include "kv_cache.h"
#include "model_types.h"
#include "team.h"

namespace socle {

enum Linear { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kNumLinears };

struct Architecture {
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  float norm_eps = 0.0f;
  int sliding_window = 0;                   // 0: every position sees all before it
  std::vector<double> rope_frequencies;     // [head_dim / 2], angle per position

  int group_size() const { return num_heads / num_kv_heads; }
};

struct Layer {
  Matrix linears[kNumLinears];
  const float* biases[3] = {};  // of query, key, value; nullptr if there are none
  const float* input_norm = nullptr;
  const float* mlp_norm = nullptr;
  const float* query_norm = nullptr;  // nullptr if heads are not normalised
  const float* key_norm = nullptr;
};

struct Weights {
  Planes embedding;
  Planes head;
  const float* final_norm = nullptr;
  std::vector<Layer> layers;
};

// What an adapter adds to one linear layer: y += b (a x); rank 0 adds nothing.
struct LowRank {
  Matrix a, b;
  int rank() const { return a.rows; }
};
struct Adapter {
  std::vector<LowRank> modules;  // [num_layers * kNumLinears]
  const LowRank& of(int layer, int linear) const { return modules[static_cast<size_t>(layer) * kNumLinears + linear]; }
};

// What one sequence runs in a step. `parents[i]` is the row that row i follows, -1 for the state's last token; without
// parents the rows are a chain. The rows of a tree are not appended to the state: `KvState::accept` takes a branch.
struct Segment {
  KvState* state = nullptr;
  const int32_t* token_ids = nullptr;
  int num_rows = 0;
  const int32_t* parents = nullptr;
  const Adapter* adapter = nullptr;
  const int32_t* logit_rows = nullptr;
  int num_logit_rows = 0;
};

struct Settings {
  const Kernels* kernels = nullptr;
  int num_threads = 1;
  std::vector<int> cpus;
  double duty_cycle = 1.0;
  int max_context_tokens = 0;
  int max_step_rows = 0;
  int max_rank = 256;
  KvEncoding kv_encoding = KvEncoding::kHalf;
};

constexpr int kMaxTreeRows = 64;

// Of a head in planes, as many tiles of 16 tokens are worked out in 8 bits for each row: those with the largest logits in
// 4 bits. The others keep these. Reading half the head is worth a fifth of a decode step of a small model.
constexpr int kRefinedTiles = 128;

class Model {
 public:
  Model(Architecture architecture, Weights weights, Settings settings);
  ~Model();

  const Architecture& architecture() const { return architecture_; }
  const Settings& settings() const { return settings_; }
  const KvShape& kv_shape() const { return kv_shape_; }

  // Runs the segments; returns logits [sum of num_logit_rows, logit_stride()], valid until the next step. A logit is
  // finite or NaN.
  // Throws std::invalid_argument or std::length_error before anything is computed.
  const float* step(const std::vector<Segment>& segments);
  // Of the memory that steps work in: what they have touched, and the most that steps of so many rows can touch.
  size_t resident_scratch_bytes() const;
  size_t scratch_bytes(int num_rows, int num_logit_rows) const;
  size_t logit_stride() const { return round_up(architecture_.vocab_size, kTileRows); }

 private:
  struct Row {
    int segment;
    int index;     // in its segment
    int position;  // in its sequence
    int slot;      // where its key and value lie: the position, but for trees
  };
  // Query rows of one KV head that are worked off together: row-major over (row, head of the group).
  struct AttentionItem {
    int segment;
    int kv_head;
    int first_query;
    int num_queries;
  };
  // A product of several matrices of a layer over the same rows.
  struct Product {
    const EncodedRows* input;
    int layer;
    Linear first;
    int num_linears;
    float* outputs[3];
    size_t output_stride;
    Store store;
  };
  struct ThreadScratch;

  size_t decoded_tile_bytes() const;
  void check(const std::vector<Segment>& segments) const;
  void check_segment(const Segment& segment) const;
  void lay_out_rows(const std::vector<Segment>& segments);
  void run(int thread);
  void run_layer(int thread, int layer, int num_rows);
  template <class Body>
  void then_rows(int num_rows, Body&& body);

  void start_row(int row);
  void encode_normed(int row, const float* norm);
  void finish_heads(int row, int layer);
  void finish_logit_row(int index);
  void run_head(int thread, int num_logit_rows);
  void choose_tiles(int index);

  void attend(int thread, int layer, const AttentionItem& item);
  void gather_branch(int thread, int layer, int kv_head, const Row& row);

  // `num_items` of the adapters' A come first in a phase; whoever adds B waits for them.
  void multiply(int thread, const Product& product);
  void multiply_tiles(int thread, const Product& product, int slot, int first_tile, int last_tile, int num_items);
  void gate_and_up(int thread, int layer);
  void gate_columns(int thread, int layer, int group, int first_row, int num_rows, int num_items);
  int num_low_rank_items(int layer, Linear first, int num_linears) const;
  void run_low_rank_item(int thread, int layer, Linear first, int num_linears, const EncodedRows& input, int item);
  void add_low_rank(int thread, int layer, Linear first, int slot, int first_row, int num_rows, int first_tile,
                    int last_tile, float* out, size_t out_stride);
  void multiply_by_a(int thread, const Matrix& a, const EncodedRows& input, int segment, int slot);
  void fetch_low_rank(int layer, Linear first, int slot, int first_tile, int last_tile) const;
  Rows low_rank_rows(int slot, int segment, int rank) const;

  Architecture architecture_;
  Weights weights_;
  Settings settings_;
  const Kernels& kernels_;
  KvShape kv_shape_;
  Team team_;
  bool is_float_;

  // Of the step that runs.
  const std::vector<Segment>* segments_ = nullptr;
  std::vector<Row> rows_;
  std::vector<int> first_rows_;  // of each segment
  std::vector<int> logit_rows_;  // in rows_
  std::vector<AttentionItem> attention_items_;

  int hidden_stride_, query_columns_, key_columns_, intermediate_stride_;
  Buffer<float> x_;        // [rows, hidden_stride], the residual stream
  Buffer<float> normed_;   // [rows, hidden_stride]
  Buffer<float> heads_;    // [rows, query_columns + 2 key_columns]
  Buffer<float> mixed_;    // [rows, query_columns], what attention gives
  Buffer<float> cos_, sin_;  // [rows, head_dim / 2]
  Buffer<float> low_rank_;   // [3, rows, max_rank]
  Buffer<uint8_t> low_rank_records_;
  Buffer<float> logits_;     // [rows, logit_stride]
  Buffer<float> tile_tops_;  // [rows, tiles of the head], the largest logit of each, and a copy to sort
  Buffer<int> refined_;      // [rows, kRefinedTiles]
  EncodedRows hidden_in_, mixed_in_, gated_in_, head_in_;
  std::vector<std::unique_ptr<ThreadScratch>> scratch_;
};

}  // namespace socle
