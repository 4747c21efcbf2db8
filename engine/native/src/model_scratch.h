// What each thread of a step needs for itself.
#pragma once

#include "model.h"

namespace socle {

constexpr int kGateColumns = kGroupInputs;  // of gate and up, which stay in the first cache while they are combined
constexpr int kGateRows = 64;
constexpr int kTreeTiles = (kTilePositions + kMaxTreeRows) / kTilePositions + 1;

struct Model::ThreadScratch {
  ThreadScratch(const Settings& settings, const KvShape& kv, size_t decoded_tile_bytes)
      : score_stride(round_up(settings.max_context_tokens, kTilePositions) + kTilePositions),
        scores(score_stride * kMaxQueries),
        tiles(score_stride / kTilePositions),
        branch(kv.layout.tile_bytes() * kTreeTiles),
        gate(kGateRows * kGateColumns),
        up(kGateRows * kGateColumns),
        decoded(decoded_tile_bytes) {}

  size_t size_bytes() const {
    return scores.size_bytes() + tiles.size_bytes() + branch.size_bytes() + gate.size_bytes() + up.size_bytes() +
           decoded.size_bytes();
  }
  size_t resident_bytes() const {
    return scores.resident_bytes() + tiles.resident_bytes() + branch.resident_bytes() + gate.resident_bytes() +
           up.resident_bytes() + decoded.resident_bytes();
  }

  size_t score_stride;
  Buffer<float> scores;
  Buffer<const uint8_t*> tiles;
  Buffer<uint8_t> branch;
  Buffer<float> gate, up;
  Buffer<uint8_t> decoded;  // a tile of weights
};

}  // namespace socle
