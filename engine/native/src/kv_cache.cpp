#include "kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace socle {

KvState::KvState(const KvShape& shape, int max_tokens)
    : shape_(shape), tile_bytes_(shape.layout.tile_bytes()), max_tokens_(max_tokens) {
  for (int i = 0; i < KvShape::blocks_for(max_tokens); i++) blocks_.emplace_back(shape.block_bytes());
}

void KvState::rewind(int num_tokens) {
  if (num_tokens < 0 || num_tokens > num_tokens_) {
    throw std::invalid_argument("cannot rewind to " + std::to_string(num_tokens) + " tokens, the state holds " +
                                std::to_string(num_tokens_));
  }
  num_tokens_ = num_tokens;
  tree_.clear();
}

void KvState::extend(int num_tokens) {
  num_tokens_ += num_tokens;
  tree_.clear();
}

void KvState::accept(const int* rows, int num_rows) {
  for (int i = 0, parent = -1; i < num_rows; parent = rows[i++]) {
    if (rows[i] < 0 || rows[i] >= static_cast<int>(tree_.size()) || tree_[rows[i]] != parent) {
      throw std::invalid_argument("row " + std::to_string(rows[i]) + " of the last step's tree does not follow row " +
                                  std::to_string(parent));
    }
  }
  for (int i = 0; i < num_rows; i++) move_position(num_tokens_ + rows[i], num_tokens_ + i);
  extend(num_rows);
}

void KvState::move_position(int from, int to) {
  if (from == to) return;
  for (int layer = 0; layer < shape_.num_layers; layer++) {
    for (int head = 0; head < shape_.num_kv_heads; head++) {
      copy_position(shape_.layout, tile(layer, head, from / kTilePositions), from % kTilePositions,
                    tile(layer, head, to / kTilePositions), to % kTilePositions);
    }
  }
}

void copy_position(const KvLayout& layout, const uint8_t* from, int from_lane, uint8_t* to, int to_lane) {
  const size_t element = layout.element_bytes(), row = element * layout.value_stride();
  for (int d = 0; d < layout.head_dim; d++) {
    const size_t start = element * kTilePositions * d;
    std::memcpy(to + start + element * to_lane, from + start + element * from_lane, element);
  }
  const size_t values = layout.value_offset();
  std::memcpy(to + values + row * to_lane, from + values + row * from_lane, row);
  if (layout.encoding == KvEncoding::kHalf) return;
  const size_t key_scales = element * kTilePositions * layout.head_dim, value_scales = values + row * kTilePositions;
  for (const size_t scales : {key_scales, value_scales}) {
    std::memcpy(to + scales + sizeof(float) * to_lane, from + scales + sizeof(float) * from_lane, sizeof(float));
  }
}

}  // namespace socle
