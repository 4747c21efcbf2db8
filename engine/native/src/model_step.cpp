// The step of `Model`, as every thread of the team runs it: phase after phase, row, tile or head as each comes to it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "embedding.h"
#include "model.h"
#include "model_scratch.h"

namespace socle {
namespace {

constexpr int kSerialRows = 4;  // a barrier costs about as much as a row's norm
constexpr int kTileGrain = 2;   // tiles that a thread takes at least

}  // namespace

// Ends a phase: when all threads have done their shares, body(row) for each row, and nobody goes on before.
template <class Body>
void Model::then_rows(int num_rows, Body&& body) {
  if (num_rows <= kSerialRows) {
    team_.barrier([&] {
      for (int row = 0; row < num_rows; row++) body(row);
    });
    return;
  }
  team_.barrier();
  team_.share(num_rows, 1, [&](int first, int last) {
    for (int row = first; row < last; row++) body(row);
  });
  team_.barrier();
}

void Model::run(int thread) {
  const int num_rows = static_cast<int>(rows_.size()), num_logit_rows = static_cast<int>(logit_rows_.size());
  then_rows(num_rows, [this](int row) { start_row(row); });
  for (int layer = 0; layer < architecture_.num_layers; layer++) {
    run_layer(thread, layer, num_rows);
    if (settings_.duty_cycle < 1.0) team_.barrier([this] { team_.pace(); });
  }
  if (num_logit_rows == 0) return;
  then_rows(num_logit_rows, [this](int index) { finish_logit_row(index); });
  run_head(thread, num_logit_rows);
}

void Model::run_layer(int thread, int layer, int num_rows) {
  const size_t hidden_stride = hidden_stride_, heads_stride = query_columns_ + 2 * key_columns_;
  float* const heads = heads_.data();
  float* const key_heads = heads + query_columns_;
  multiply(thread, {&hidden_in_, layer, kQuery, 3, {heads, key_heads, key_heads + key_columns_}, heads_stride, Store::kSet});
  then_rows(num_rows, [=](int row) { finish_heads(row, layer); });

  team_.share(static_cast<int>(attention_items_.size()), 1, [=](int first, int last) {
    for (int item = first; item < last; item++) attend(thread, layer, attention_items_[item]);
  });
  then_rows(num_rows, [=](int row) {
    mixed_in_.encode(row, mixed_.data() + static_cast<size_t>(row) * query_columns_);
  });

  multiply(thread, {&mixed_in_, layer, kOutput, 1, {x_.data()}, hidden_stride, Store::kAdd});
  then_rows(num_rows, [=](int row) { encode_normed(row, weights_.layers[layer].mlp_norm); });

  gate_and_up(thread, layer);
  team_.barrier();

  multiply(thread, {&gated_in_, layer, kDown, 1, {x_.data()}, hidden_stride, Store::kAdd});
  const bool is_last = layer + 1 == architecture_.num_layers;
  then_rows(is_last ? 0 : num_rows, [=](int row) { encode_normed(row, weights_.layers[layer + 1].input_norm); });
}

// ---- rows

void Model::start_row(int row) {
  const Segment& segment = (*segments_)[rows_[row].segment];
  float* x = x_.data() + static_cast<size_t>(row) * hidden_stride_;
  embed(weights_.embedding, segment.token_ids[rows_[row].index], x);
  const int half = architecture_.head_dim / 2;
  for (int i = 0; i < half; i++) {
    const double angle = rows_[row].position * architecture_.rope_frequencies[i];
    cos_[static_cast<size_t>(row) * half + i] = static_cast<float>(std::cos(angle));
    sin_[static_cast<size_t>(row) * half + i] = static_cast<float>(std::sin(angle));
  }
  encode_normed(row, weights_.layers[0].input_norm);
}

void Model::encode_normed(int row, const float* norm) {
  const size_t at = static_cast<size_t>(row) * hidden_stride_;
  kernels_.rms_norm(x_.data() + at, norm, architecture_.hidden_size, architecture_.norm_eps, normed_.data() + at);
  hidden_in_.encode(row, normed_.data() + at);
}

void Model::finish_logit_row(int index) {
  const size_t from = static_cast<size_t>(logit_rows_[index]) * hidden_stride_;
  const size_t to = static_cast<size_t>(index) * hidden_stride_;
  kernels_.rms_norm(x_.data() + from, weights_.final_norm, architecture_.hidden_size, architecture_.norm_eps,
                    normed_.data() + to);
  head_in_.encode(index, normed_.data() + to);
}

void Model::run_head(int thread, int num_rows) {
  const Rows& rows = head_in_.rows();
  const Matrix &high = weights_.head.high, &low = weights_.head.low;
  const int num_tiles = high.num_tiles();
  uint8_t* const decoded = scratch_[thread]->decoded.data();
  team_.share(num_tiles, kTileGrain, [&](int first, int last) {
    float* const out = logits_.data() + static_cast<size_t>(first) * kTileRows;
    kernels_.product(high, rows, 0, num_rows, first, last, out, logit_stride(), Store::kSet, decoded);
    for (int row = 0; row < num_rows; row++) {
      kernels_.expose(out + row * logit_stride(), (last - first) * kTileRows);
      if (!low.data) continue;
      kernels_.tile_tops(logits_.data() + row * logit_stride(), first, last, architecture_.vocab_size,
                         tile_tops_.data() + static_cast<size_t>(2 * row) * num_tiles);
    }
  });
  if (!low.data) return;
  team_.barrier();
  team_.share(num_rows, 1, [&](int first, int last) {
    for (int row = first; row < last; row++) choose_tiles(row);
  });
  team_.barrier();
  const int num_refined = num_tiles < kRefinedTiles ? num_tiles : kRefinedTiles;
  team_.share(num_rows * num_refined, 8, [&](int first, int last) {
    for (int item = first; item < last; item++) {
      const int row = item / num_refined, tile = refined_[row * kRefinedTiles + item % num_refined];
      float* const out = logits_.data() + row * logit_stride() + static_cast<size_t>(tile) * kTileRows;
      kernels_.product(low, rows, row, 1, tile, tile + 1, out, logit_stride(), Store::kAdd, decoded);
      kernels_.expose(out, kTileRows);
    }
  });
}

// The tiles with the largest logits, the first of those that are equal.
void Model::choose_tiles(int index) {
  const int num_tiles = weights_.head.high.num_tiles();
  int* chosen = refined_.data() + static_cast<size_t>(index) * kRefinedTiles;
  const float* tops = tile_tops_.data() + static_cast<size_t>(2 * index) * num_tiles;
  if (num_tiles <= kRefinedTiles) {
    for (int tile = 0; tile < num_tiles; tile++) chosen[tile] = tile;
    return;
  }
  float* sorted = tile_tops_.data() + static_cast<size_t>(2 * index + 1) * num_tiles;
  std::memcpy(sorted, tops, sizeof(float) * num_tiles);
  std::nth_element(sorted, sorted + kRefinedTiles - 1, sorted + num_tiles, std::greater<float>());
  const float least = sorted[kRefinedTiles - 1];
  int count = 0;
  for (int tile = 0; tile < num_tiles; tile++) {
    if (tops[tile] > least) chosen[count++] = tile;
  }
  for (int tile = 0; count < kRefinedTiles; tile++) {
    if (tops[tile] == least) chosen[count++] = tile;
  }
}

// Biases, norms, rotation; the row's keys and values go into the cache.
void Model::finish_heads(int row, int layer) {
  const Layer& weights = weights_.layers[layer];
  const Row& place = rows_[row];
  const int head_dim = architecture_.head_dim, half = head_dim / 2;
  const int num_heads = architecture_.num_heads, num_kv_heads = architecture_.num_kv_heads;
  const float* cos = cos_.data() + static_cast<size_t>(row) * half;
  const float* sin = sin_.data() + static_cast<size_t>(row) * half;
  float* queries = heads_.data() + static_cast<size_t>(row) * (query_columns_ + 2 * key_columns_);
  float* keys = queries + query_columns_;
  float* values = keys + key_columns_;
  if (weights.biases[0]) kernels_.add(queries, weights.biases[0], num_heads * head_dim);
  if (weights.biases[1]) kernels_.add(keys, weights.biases[1], num_kv_heads * head_dim);
  if (weights.biases[2]) kernels_.add(values, weights.biases[2], num_kv_heads * head_dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int head = 0; head < num_heads; head++) {
    float* query = queries + head * head_dim;
    if (weights.query_norm) kernels_.rms_norm(query, weights.query_norm, head_dim, architecture_.norm_eps, query);
    kernels_.rotate(query, cos, sin, head_dim);
    kernels_.scale(query, scale, head_dim);
  }
  for (int head = 0; head < num_kv_heads; head++) {
    float* key = keys + head * head_dim;
    if (weights.key_norm) kernels_.rms_norm(key, weights.key_norm, head_dim, architecture_.norm_eps, key);
    kernels_.rotate(key, cos, sin, head_dim);
    uint8_t* tile = (*segments_)[place.segment].state->tile(layer, head, place.slot / kTilePositions);
    kernels_.store_kv(kv_shape_.layout, tile, place.slot % kTilePositions, key, values + head * head_dim);
  }
}

// ---- attention

void Model::attend(int thread, int layer, const AttentionItem& item) {
  ThreadScratch& scratch = *scratch_[thread];
  const Segment& segment = (*segments_)[item.segment];
  const int first_row = first_rows_[item.segment], group = architecture_.group_size(), head_dim = architecture_.head_dim;
  const float* queries[kMaxQueries];
  float* outputs[kMaxQueries];
  int begins[kMaxQueries], ends[kMaxQueries], end = 0;
  for (int i = 0; i < item.num_queries; i++) {
    const int query = item.first_query + i, row = first_row + query / group;
    const size_t column = static_cast<size_t>(item.kv_head * group + query % group) * head_dim;
    queries[i] = heads_.data() + static_cast<size_t>(row) * (query_columns_ + 2 * key_columns_) + column;
    outputs[i] = mixed_.data() + static_cast<size_t>(row) * query_columns_ + column;
    ends[i] = rows_[row].position + 1;
    const int window = architecture_.sliding_window;
    begins[i] = window && ends[i] > window ? ends[i] - window : 0;
    end = ends[i] > end ? ends[i] : end;
  }
  const Row& last_row = rows_[first_row + (item.first_query + item.num_queries - 1) / group];
  const int num_shared = segment.parents ? segment.state->num_tokens() : end;
  for (int tile = 0; tile * kTilePositions < num_shared; tile++) {
    scratch.tiles[tile] = segment.state->tile(layer, item.kv_head, tile);
  }
  if (segment.parents) gather_branch(thread, layer, item.kv_head, last_row);
  kernels_.attend({kv_shape_.layout, scratch.tiles.data(), queries, outputs, begins, ends, item.num_queries,
                   scratch.scores.data(), scratch.score_stride});
}

// A row of a tree sees its ancestors alone: they are copied to where they would lie if the branch were a chain, behind
// a copy of the tile that the state's last tokens share with them. So its bits are those of the chain.
void Model::gather_branch(int thread, int layer, int kv_head, const Row& row) {
  ThreadScratch& scratch = *scratch_[thread];
  const KvLayout& layout = kv_shape_.layout;
  const Segment& segment = (*segments_)[row.segment];
  const KvState& state = *segment.state;
  const int base = state.num_tokens(), first_tile = base / kTilePositions;
  for (int tile = first_tile; tile * kTilePositions <= row.position; tile++) {
    scratch.tiles[tile] = scratch.branch.data() + layout.tile_bytes() * (tile - first_tile);
  }
  if (base % kTilePositions) {
    std::memcpy(scratch.branch.data(), state.tile(layer, kv_head, first_tile), layout.tile_bytes());
  }
  for (int index = row.index, position = row.position; index >= 0; index = segment.parents[index], position--) {
    const int slot = base + index;
    uint8_t* tile = scratch.branch.data() + layout.tile_bytes() * (position / kTilePositions - first_tile);
    copy_position(layout, state.tile(layer, kv_head, slot / kTilePositions), slot % kTilePositions, tile,
                  position % kTilePositions);
  }
}

// ---- products

void Model::multiply(int thread, const Product& product) {
  const Layer& layer = weights_.layers[product.layer];
  const int num_items = num_low_rank_items(product.layer, product.first, product.num_linears);
  team_.share_first(num_items, [&](int item) {
    run_low_rank_item(thread, product.layer, product.first, product.num_linears, *product.input, item);
  });
  int num_tiles = 0;
  for (int slot = 0; slot < product.num_linears; slot++) num_tiles += layer.linears[product.first + slot].num_tiles();
  team_.share(num_tiles, kTileGrain, [&](int first, int last) {
    int offset = 0;
    for (int slot = 0; slot < product.num_linears; slot++) {
      const int tiles = layer.linears[product.first + slot].num_tiles();
      const int from = first > offset ? first - offset : 0, to = last - offset < tiles ? last - offset : tiles;
      if (from < to) multiply_tiles(thread, product, slot, from, to, num_items);
      offset += tiles;
    }
  });
}

void Model::multiply_tiles(int thread, const Product& product, int slot, int first_tile, int last_tile, int num_items) {
  const int num_rows = static_cast<int>(rows_.size());
  float* out = product.outputs[slot] + static_cast<size_t>(first_tile) * kTileRows;
  if (num_items > 0) fetch_low_rank(product.layer, product.first, slot, first_tile, last_tile);
  kernels_.product(weights_.layers[product.layer].linears[product.first + slot], product.input->rows(), 0, num_rows,
                   first_tile, last_tile, out, product.output_stride, product.store, scratch_[thread]->decoded.data());
  if (num_items == 0) return;
  team_.wait_for_first(num_items);
  add_low_rank(thread, product.layer, product.first, slot, 0, num_rows, first_tile, last_tile, out, product.output_stride);
}

void Model::gate_and_up(int thread, int layer) {
  const int num_items = num_low_rank_items(layer, kGate, 2), num_rows = static_cast<int>(rows_.size());
  team_.share_first(num_items, [&](int item) { run_low_rank_item(thread, layer, kGate, 2, hidden_in_, item); });
  const int step = kGateRows / hidden_in_.rows().block_rows * hidden_in_.rows().block_rows;  // whole blocks
  team_.share(intermediate_stride_ / kGroupInputs, 1, [&](int first, int last) {
    for (int group = first; group < last; group++) {
      for (int row = 0; row < num_rows; row += step) {
        gate_columns(thread, layer, group, row, num_rows - row < step ? num_rows - row : step, num_items);
      }
    }
  });
}

// silu(gate x) * (up x) for the columns of one group, straight into the form that the next product reads.
void Model::gate_columns(int thread, int layer, int group, int first_row, int num_rows, int num_items) {
  ThreadScratch& scratch = *scratch_[thread];
  const int first_tile = group * kGateColumns / kTileRows, end_tile = first_tile + kGateColumns / kTileRows;
  for (int slot = 0; slot < 2; slot++) {
    const Matrix& matrix = weights_.layers[layer].linears[kGate + slot];
    const int last_tile = end_tile < matrix.num_tiles() ? end_tile : matrix.num_tiles();
    float* out = slot == 0 ? scratch.gate.data() : scratch.up.data();
    if (num_items > 0) fetch_low_rank(layer, kGate, slot, first_tile, last_tile);
    kernels_.product(matrix, hidden_in_.rows(), first_row, num_rows, first_tile, last_tile, out, kGateColumns, Store::kSet,
                     scratch.decoded.data());
    if (num_items == 0) continue;
    team_.wait_for_first(num_items);
    add_low_rank(thread, layer, kGate, slot, first_row, num_rows, first_tile, last_tile, out, kGateColumns);
  }
  const int num_real = architecture_.intermediate_size - group * kGateColumns;
  for (int row = 0; row < num_rows; row++) {
    float* gate = scratch.gate.data() + static_cast<size_t>(row) * kGateColumns;
    kernels_.gate(gate, scratch.up.data() + static_cast<size_t>(row) * kGateColumns, kGateColumns);
    for (int column = num_real; column < kGateColumns; column++) gate[column] = 0.0f;  // padding of the last group
    gated_in_.encode_groups(first_row + row, group, group + 1, gate);
  }
}

// ---- adapters

// What A made of a segment's rows: float32, and in the form that the product with B reads.
Rows Model::low_rank_rows(int slot, int segment, int rank) const {
  const size_t stride = round_up(settings_.max_rank, kTileRows);
  const size_t row = static_cast<size_t>(slot) * settings_.max_step_rows + first_rows_[segment];
  Rows rows;
  rows.dense = low_rank_.data() + row * stride;
  rows.dense_stride = stride;
  rows.records = low_rank_records_.data() + row * (stride + kRecordTailBytes);
  rows.num_groups = 1;
  rows.group_inputs = round_up(rank, kTileRows);
  rows.block_rows = kernels_.max_block_rows;
  return rows;
}

// One for each segment and each linear layer that its adapter changes.
int Model::num_low_rank_items(int layer, Linear first, int num_linears) const {
  int count = 0;
  for (const Segment& segment : *segments_) {
    for (int slot = 0; segment.adapter && slot < num_linears; slot++) {
      count += segment.adapter->of(layer, first + slot).rank() > 0;
    }
  }
  return count;
}

void Model::run_low_rank_item(int thread, int layer, Linear first, int num_linears, const EncodedRows& input, int item) {
  for (int index = 0; index < static_cast<int>(segments_->size()); index++) {
    const Segment& segment = (*segments_)[index];
    for (int slot = 0; segment.adapter && slot < num_linears; slot++) {
      const Matrix& a = segment.adapter->of(layer, first + slot).a;
      if (a.rows > 0 && item-- == 0) return multiply_by_a(thread, a, input, index, slot);
    }
  }
}

void Model::multiply_by_a(int thread, const Matrix& a, const EncodedRows& input, int segment, int slot) {
  const Rows rows = low_rank_rows(slot, segment, a.rows);
  const int num_rows = (*segments_)[segment].num_rows;
  float* const out = const_cast<float*>(rows.dense);
  kernels_.product(a, input.rows(), first_rows_[segment], num_rows, 0, a.num_tiles(), out, rows.dense_stride, Store::kSet,
                   scratch_[thread]->decoded.data());
  for (int row = 0; row < num_rows && !is_float_; row++) {
    kernels_.quantise(out + rows.dense_stride * row, 1, rows.group_inputs,
                      const_cast<uint8_t*>(rows.records) + rows.offset_of(row), rows.group_stride());
  }
}

// B is short: without this it would be waited for again and again.
void Model::fetch_low_rank(int layer, Linear first, int slot, int first_tile, int last_tile) const {
  for (const Segment& segment : *segments_) {
    if (!segment.adapter || segment.adapter->of(layer, first + slot).rank() == 0) continue;
    const Matrix& b = segment.adapter->of(layer, first + slot).b;
    const uint8_t* const end = b.data + b.tile_bytes() * last_tile;
    for (const uint8_t* line = b.data + b.tile_bytes() * first_tile; line < end; line += 64) __builtin_prefetch(line);
  }
}

void Model::add_low_rank(int thread, int layer, Linear first, int slot, int first_row, int num_rows, int first_tile,
                         int last_tile, float* out, size_t out_stride) {
  for (int index = 0; index < static_cast<int>(segments_->size()); index++) {
    const Segment& segment = (*segments_)[index];
    if (!segment.adapter || segment.adapter->of(layer, first + slot).rank() == 0) continue;
    const Matrix& b = segment.adapter->of(layer, first + slot).b;
    const int begin = std::max(first_rows_[index], first_row);
    const int end = std::min(first_rows_[index] + segment.num_rows, first_row + num_rows);
    if (begin >= end) continue;
    kernels_.product(b, low_rank_rows(slot, index, b.inputs), begin - first_rows_[index], end - begin, first_tile, last_tile,
                     out + static_cast<size_t>(begin - first_row) * out_stride, out_stride, Store::kAdd,
                     scratch_[thread]->decoded.data());
  }
}

}  // namespace socle
