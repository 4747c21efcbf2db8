#include "kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace socle {

KvState::KvState(const KvShape& shape, int max_tokens, KvBlocks first_blocks, int num_tokens)
    : shape_(shape),
      tile_bytes_(shape.layout.tile_bytes()),
      max_tokens_(max_tokens),
      num_tokens_(num_tokens),
      blocks_(std::move(first_blocks)) {
  if (num_tokens < 0 || num_tokens > max_tokens || KvShape::blocks_for(num_tokens) != static_cast<int>(blocks_.size())) {
    throw std::invalid_argument(std::to_string(blocks_.size()) + " blocks for the first " + std::to_string(num_tokens) +
                                " tokens of at most " + std::to_string(max_tokens));
  }
  own_from(num_tokens);
  while (static_cast<int>(blocks_.size()) < KvShape::blocks_for(max_tokens)) {
    blocks_.push_back(std::make_shared<KvBlock>(shape_));
  }
}

size_t KvState::resident_bytes() const {
  size_t sum = 0;
  for (const auto& block : blocks_) sum += block->bytes.resident_bytes();
  return sum;
}

void KvState::rewind(int num_tokens) {
  if (num_tokens < 0 || num_tokens > num_tokens_) {
    throw std::invalid_argument("cannot rewind to " + std::to_string(num_tokens) + " tokens, the state holds " +
                                std::to_string(num_tokens_));
  }
  own_from(num_tokens);
  num_tokens_ = num_tokens;
  tree_.clear();
}

// What follows the first `num_tokens` will be written: its blocks must be shared with nobody.
void KvState::own_from(int num_tokens) {
  const int first = num_tokens / KvShape::kBlockPositions;
  for (int i = first; i < static_cast<int>(blocks_.size()); i++) {
    if (blocks_[i].use_count() == 1) continue;
    blocks_[i] = copy(*blocks_[i], i == first ? num_tokens % KvShape::kBlockPositions : 0);
  }
}

std::shared_ptr<KvBlock> KvState::copy(const KvBlock& block, int num_positions) const {
  auto copied = std::make_shared<KvBlock>(shape_);
  const size_t size_bytes = tile_bytes_ * round_up(num_positions, kTilePositions) / kTilePositions;
  for (int layer = 0; layer < shape_.num_layers; layer++) {
    for (int head = 0; head < shape_.num_kv_heads; head++) {
      std::memcpy(tile_in(*copied, layer, head, 0), tile_in(block, layer, head, 0), size_bytes);
    }
  }
  return copied;
}

std::shared_ptr<KvBlock> KvState::block(int index) const {
  if (index < 0 || index >= num_tokens_ / KvShape::kBlockPositions) {
    throw std::invalid_argument("block " + std::to_string(index) + " is not full: the state holds " +
                                std::to_string(num_tokens_) + " tokens");
  }
  return blocks_[index];
}

KvBlocks KvState::take() {
  KvBlocks taken = std::move(blocks_);
  taken.resize(KvShape::blocks_for(num_tokens_));
  blocks_.clear();
  num_tokens_ = max_tokens_ = 0;
  tree_.clear();
  return taken;
}

std::unique_ptr<KvState> KvState::fork(int max_tokens) const {
  const KvBlocks used(blocks_.begin(), blocks_.begin() + KvShape::blocks_for(num_tokens_));
  return std::make_unique<KvState>(shape_, max_tokens, used, num_tokens_);
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
