#include "model.h"

#include <algorithm>
#include <stdexcept>

#include "model_scratch.h"

namespace socle {
namespace {

std::string text(int value) { return std::to_string(value); }

}  // namespace

Model::Model(Architecture architecture, Weights weights, Settings settings)
    : architecture_(std::move(architecture)),
      weights_(std::move(weights)),
      settings_(std::move(settings)),
      kernels_(*settings_.kernels),
      kv_shape_{{settings_.kv_encoding, architecture_.head_dim}, architecture_.num_layers, architecture_.num_kv_heads},
      team_(settings_.num_threads, settings_.cpus, settings_.duty_cycle),
      is_float_(weights_.head.high.encoding == Encoding::kFloat32),
      hidden_stride_(round_up(architecture_.hidden_size, kGroupInputs)),
      query_columns_(round_up(architecture_.num_heads * architecture_.head_dim, kGroupInputs)),
      key_columns_(round_up(architecture_.num_kv_heads * architecture_.head_dim, kGroupInputs)),
      intermediate_stride_(round_up(architecture_.intermediate_size, kGroupInputs)) {
  const int rows = settings_.max_step_rows;
  const size_t n = rows;
  x_ = Buffer<float>(n * hidden_stride_);
  normed_ = Buffer<float>(n * hidden_stride_);
  heads_ = Buffer<float>(n * (query_columns_ + 2 * key_columns_));
  mixed_ = Buffer<float>(n * query_columns_);
  cos_ = Buffer<float>(n * (architecture_.head_dim / 2));
  sin_ = Buffer<float>(n * (architecture_.head_dim / 2));
  const size_t rank_stride = round_up(settings_.max_rank, kTileRows);
  low_rank_ = Buffer<float>(3 * n * rank_stride);
  low_rank_records_ = Buffer<uint8_t>(3 * n * (rank_stride + kRecordTailBytes));
  logits_ = Buffer<float>(n * logit_stride());
  tile_tops_ = Buffer<float>(2 * n * weights_.head.high.num_tiles());
  refined_ = Buffer<int>(n * kRefinedTiles);
  hidden_in_ = EncodedRows(kernels_, rows, architecture_.hidden_size, is_float_);
  mixed_in_ = EncodedRows(kernels_, rows, architecture_.num_heads * architecture_.head_dim, is_float_);
  gated_in_ = EncodedRows(kernels_, rows, architecture_.intermediate_size, is_float_);
  head_in_ = EncodedRows(kernels_, rows, architecture_.hidden_size, is_float_);
  for (int i = 0; i < settings_.num_threads; i++) {
    scratch_.push_back(std::make_unique<ThreadScratch>(settings_, kv_shape_, decoded_tile_bytes()));
  }
  rows_.reserve(n);
  first_rows_.reserve(n);
  logit_rows_.reserve(n);
  attention_items_.reserve(n * architecture_.num_heads);
}

Model::~Model() = default;

size_t Model::decoded_tile_bytes() const {
  int num_groups = weights_.head.high.num_groups();
  for (const Layer& layer : weights_.layers) {
    for (const Matrix& linear : layer.linears) num_groups = std::max(num_groups, linear.num_groups());
  }
  return kernels_.decoded_block_bytes * num_groups;
}

size_t Model::resident_scratch_bytes() const {
  size_t sum = low_rank_records_.resident_bytes() + refined_.resident_bytes();
  for (const Buffer<float>* buffer : {&x_, &normed_, &heads_, &mixed_, &cos_, &sin_, &low_rank_, &logits_, &tile_tops_}) {
    sum += buffer->resident_bytes();
  }
  for (const EncodedRows* rows : {&hidden_in_, &mixed_in_, &gated_in_, &head_in_}) sum += rows->resident_bytes();
  for (const auto& scratch : scratch_) sum += scratch->resident_bytes();
  return sum;
}

size_t Model::scratch_bytes(int num_rows, int num_logit_rows) const {
  size_t of_rows = low_rank_records_.size_bytes(), of_logit_rows = refined_.size_bytes() + head_in_.size_bytes();
  for (const Buffer<float>* buffer : {&x_, &normed_, &heads_, &mixed_, &cos_, &sin_, &low_rank_}) of_rows += buffer->size_bytes();
  for (const EncodedRows* rows : {&hidden_in_, &mixed_in_, &gated_in_}) of_rows += rows->size_bytes();
  for (const Buffer<float>* buffer : {&logits_, &tile_tops_}) of_logit_rows += buffer->size_bytes();
  size_t sum = (of_rows * num_rows + of_logit_rows * num_logit_rows) / settings_.max_step_rows;
  for (const auto& scratch : scratch_) sum += scratch->size_bytes();
  return sum;
}

// ---- before a step

void Model::check(const std::vector<Segment>& segments) const {
  int num_rows = 0;
  for (const Segment& segment : segments) {
    check_segment(segment);
    num_rows += segment.num_rows;
    for (const Segment* other = segments.data(); other != &segment; other++) {
      if (other->state == segment.state) throw std::invalid_argument("two segments of a step have the same state");
    }
  }
  if (num_rows > settings_.max_step_rows) {
    throw std::length_error(text(num_rows) + " rows in one step, at most " + text(settings_.max_step_rows) + " are possible");
  }
}

void Model::check_segment(const Segment& s) const {
  if (!s.state) throw std::invalid_argument("the state of a segment is closed");
  const int room = s.state->max_tokens() - s.state->num_tokens();
  if (s.num_rows > room || s.state->max_tokens() > settings_.max_context_tokens) {
    throw std::length_error("no room for " + text(s.num_rows) + " tokens: " + text(s.state->num_tokens()) + " of " +
                            text(s.state->max_tokens()) + " are taken, a context holds " +
                            text(settings_.max_context_tokens));
  }
  if (s.parents && s.num_rows > kMaxTreeRows) {
    throw std::length_error("a tree of " + text(s.num_rows) + " rows, at most " + text(kMaxTreeRows) + " are possible");
  }
  for (int i = 0; i < s.num_rows; i++) {
    if (s.token_ids[i] < 0 || s.token_ids[i] >= architecture_.vocab_size) {
      throw std::invalid_argument("token " + text(s.token_ids[i]) + " is not below " + text(architecture_.vocab_size));
    }
    if (s.parents && (s.parents[i] < -1 || s.parents[i] >= i)) {
      throw std::invalid_argument("row " + text(i) + " follows row " + text(s.parents[i]) + ": a parent comes first");
    }
  }
  for (int i = 0, previous = -1; i < s.num_logit_rows; previous = s.logit_rows[i++]) {
    if (s.logit_rows[i] <= previous || s.logit_rows[i] >= s.num_rows) {
      throw std::invalid_argument("logits of row " + text(s.logit_rows[i]) + " of " + text(s.num_rows) + ", after row " +
                                  text(previous) + ": rows ascend");
    }
  }
}

void Model::lay_out_rows(const std::vector<Segment>& segments) {
  rows_.clear();
  first_rows_.clear();
  logit_rows_.clear();
  attention_items_.clear();
  for (int index = 0; index < static_cast<int>(segments.size()); index++) {
    const Segment& segment = segments[index];
    const int first = static_cast<int>(rows_.size()), base = segment.state->num_tokens();
    first_rows_.push_back(first);
    for (int i = 0; i < segment.num_rows; i++) {
      int position = base + i;
      if (segment.parents) position = segment.parents[i] < 0 ? base : rows_[first + segment.parents[i]].position + 1;
      rows_.push_back({index, i, position, base + i});
    }
    for (int i = 0; i < segment.num_logit_rows; i++) logit_rows_.push_back(first + segment.logit_rows[i]);
    // The rows of a tree see different branches, so each is worked off by itself.
    const int group = architecture_.group_size(), num_runs = segment.parents ? segment.num_rows : 1;
    const int run_queries = segment.num_rows * group / (num_runs ? num_runs : 1);
    for (int head = 0; head < architecture_.num_kv_heads; head++) {
      for (int query = 0; query < num_runs * run_queries;) {
        const int left_in_run = run_queries - query % run_queries;
        const int count = left_in_run < kMaxQueries ? left_in_run : kMaxQueries;
        attention_items_.push_back({index, head, query, count});
        query += count;
      }
    }
  }
}

const float* Model::step(const std::vector<Segment>& segments) {
  check(segments);
  lay_out_rows(segments);
  if (rows_.empty()) return logits_.data();
  for (EncodedRows* encoded : {&hidden_in_, &mixed_in_, &gated_in_}) encoded->start(static_cast<int>(rows_.size()));
  head_in_.start(static_cast<int>(logit_rows_.size()));
  segments_ = &segments;
  team_.run([this](int thread) { run(thread); });
  for (const Segment& segment : segments) {
    if (segment.parents) {
      segment.state->offer(segment.parents, segment.num_rows);
    } else {
      segment.state->extend(segment.num_rows);
    }
  }
  return logits_.data();
}

}  // namespace socle
