// The values that the core computes with: weights as they lie in the mapped file, and the rows of a step.
//
// Knows layouts and sizes; owns no memory and computes nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace socle {

// A matrix [rows, inputs] is cut into tiles of 16 output rows and groups of 32 inputs. A block is one group of one tile:
//
//   int4   16 fp16 scales, then 4 vectors of 64 bytes: low nibbles are inputs 0..15 of the group, high ones 16..31
//   int8   16 fp16 scales, then 8 vectors of 64 bytes
//
//             lane 0 = row 0      lane 1 = row 1              lane 15 = row 15
//   vector v  [in 4v .. 4v+3]     [in 4v .. 4v+3]     ...     [in 4v .. 4v+3]         one 32-bit lane is four inputs
//
// Values are unsigned with zero point 8 or 128. One vector is one AVX-512 register, two of AVX2, four of Neon: the
// same bytes run on all of them. `engine/layout.py` writes them.
constexpr int kTileRows = 16;
constexpr int kGroupInputs = 32;
constexpr int kScaleBytes = 2 * kTileRows;
constexpr int kVectorBytes = 64;
constexpr int kLaneInputs = 4;

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

enum class Encoding : int {
  kInt4,
  kInt8,
  kFloat32,  // plain [rows, inputs], for parity tests
  kLowRank,  // int8 with one scale for all inputs: an adapter's B, whose inputs are its rank
};

struct Matrix {
  const uint8_t* data = nullptr;
  int rows = 0;
  int inputs = 0;
  Encoding encoding = Encoding::kInt4;

  int num_tiles() const { return round_up(rows, kTileRows) / kTileRows; }
  int num_groups() const { return encoding == Encoding::kLowRank ? 1 : round_up(inputs, kGroupInputs) / kGroupInputs; }
  int vectors_per_block() const {
    if (encoding == Encoding::kLowRank) return round_up(inputs, kLaneInputs) / kLaneInputs;
    return encoding == Encoding::kInt4 ? 4 : 8;
  }
  size_t block_bytes() const { return kScaleBytes + static_cast<size_t>(kVectorBytes) * vectors_per_block(); }
  size_t tile_bytes() const {
    if (encoding == Encoding::kFloat32) return sizeof(float) * kTileRows * static_cast<size_t>(inputs);
    return block_bytes() * num_groups();
  }
  size_t size_bytes() const {
    if (encoding == Encoding::kFloat32) return sizeof(float) * static_cast<size_t>(rows) * inputs;
    return tile_bytes() * num_tiles();
  }
};

// Rows that enter a product: int8 with one scale per group, and beside it what the zero point of 4-bit weights adds.
// For float32 weights the rows are read as they were.
//
//   dense    [num_rows, dense_stride]
//   values   [num_rows, num_groups * group_inputs], a group's scale is its largest magnitude / 127
//   scales   [num_rows, num_groups]
//   offsets  [num_rows, num_groups], -8 * the sum of the group's values
struct Rows {
  const float* dense = nullptr;
  size_t dense_stride = 0;
  const int8_t* values = nullptr;
  const float* scales = nullptr;
  const int32_t* offsets = nullptr;
  int num_groups = 0;
  int group_inputs = kGroupInputs;

  size_t value_stride() const { return static_cast<size_t>(num_groups) * group_inputs; }
};

// Whether a product replaces what lies in its output or is added to it.
enum class Store { kSet, kAdd };

}  // namespace socle
