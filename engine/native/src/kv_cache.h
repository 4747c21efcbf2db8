// The keys and values of one sequence, in blocks of positions.
//
// A block holds all layers and heads of 64 positions. Sequences with the same beginning share whole blocks; a state writes
// only to blocks of its own. Knows nothing of how keys and values come about.
#pragma once

#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace socle {

struct KvShape {
  KvLayout layout;
  int num_layers = 0;
  int num_kv_heads = 0;

  static constexpr int kBlockTiles = 4;
  static constexpr int kBlockPositions = kBlockTiles * kTilePositions;
  size_t block_bytes() const { return layout.tile_bytes() * kBlockTiles * num_kv_heads * num_layers; }
  static int blocks_for(int num_tokens) { return round_up(num_tokens, kBlockPositions) / kBlockPositions; }
};

// Zeroed when it is made; its pages are taken as they are written. One count tells who holds it, in C++ and in Python.
struct KvBlock : std::enable_shared_from_this<KvBlock> {
  explicit KvBlock(const KvShape& shape) : bytes(shape.block_bytes()) {}
  Buffer<uint8_t> bytes;
};
using KvBlocks = std::vector<std::shared_ptr<KvBlock>>;

class KvState {
 public:
  // Room for max_tokens. The state begins with `num_tokens` that other states have written to `first_blocks`: whole blocks
  // are shared, what is used of the last one is copied. Throws std::invalid_argument if these do not fit.
  KvState(const KvShape& shape, int max_tokens, KvBlocks first_blocks = {}, int num_tokens = 0);
  KvState(const KvState&) = delete;
  KvState& operator=(const KvState&) = delete;

  int num_tokens() const { return num_tokens_; }
  int max_tokens() const { return max_tokens_; }
  size_t size_bytes() const { return blocks_.size() * shape_.block_bytes(); }
  size_t resident_bytes() const;

  // Forgets all but the first `num_tokens`.
  void rewind(int num_tokens);
  // Announces tokens whose keys and values were written behind the last one.
  void extend(int num_tokens);
  // Announces the rows of a tree that were written there; the last token is the parent -1.
  void offer(const int32_t* parents, int num_rows) { tree_.assign(parents, parents + num_rows); }
  // Takes a branch of the tree as the next tokens, and drops its other rows. Throws std::invalid_argument if these rows
  // are no branch of it.
  void accept(const int* rows, int num_rows);

  // A block all of whose positions hold tokens, for others to begin with. Throws std::invalid_argument for another.
  std::shared_ptr<KvBlock> block(int index) const;
  // Ends the state, which has no room any more; returns the blocks with its tokens.
  KvBlocks take();
  // Another state with the same tokens.
  std::unique_ptr<KvState> fork(int max_tokens) const;

  // The tile of 16 positions of one layer and head.
  uint8_t* tile(int layer, int kv_head, int tile_index) const {
    return tile_in(*blocks_[tile_index / KvShape::kBlockTiles], layer, kv_head, tile_index % KvShape::kBlockTiles);
  }

 private:
  uint8_t* tile_in(const KvBlock& block, int layer, int kv_head, int tile_index) const {
    const size_t row = static_cast<size_t>(layer) * shape_.num_kv_heads + kv_head;
    return block.bytes.data() + (row * KvShape::kBlockTiles + tile_index) * tile_bytes_;
  }
  void own_from(int num_tokens);
  std::shared_ptr<KvBlock> copy(const KvBlock& block, int num_positions) const;
  void move_position(int from, int to);

  KvShape shape_;
  size_t tile_bytes_;
  int max_tokens_;
  int num_tokens_ = 0;
  std::vector<int32_t> tree_;  // parents of the rows that the last step left behind the last token
  KvBlocks blocks_;
};

// Copies one position from a lane of a tile to a lane of another.
void copy_position(const KvLayout& layout, const uint8_t* from, int from_lane, uint8_t* to, int to_lane);

}  // namespace socle
