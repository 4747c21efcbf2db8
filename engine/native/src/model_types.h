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

// Rows that enter a product, as it reads them: blocks of some rows, in a block group after group, in a group a record per
// row. A product passes over a block from its first byte to its last while the weights of a tile pass by.
//
//   record   group_inputs int8 values, an int32 offset, a float32 scale
//
// The scale is the group's largest magnitude / 127; the offset, -8 * the sum of the values, is what the zero point of 4-bit
// weights adds. For float32 weights the rows stay as they were: dense [num_rows, dense_stride].
constexpr int kRecordTailBytes = sizeof(int32_t) + sizeof(float);
struct Rows {
  const float* dense = nullptr;
  size_t dense_stride = 0;
  const uint8_t* records = nullptr;
  int num_groups = 0;
  int group_inputs = kGroupInputs;
  int block_rows = 1;

  size_t record_bytes() const { return group_inputs + kRecordTailBytes; }
  size_t group_stride() const { return block_rows * record_bytes(); }
  size_t offset_of(int row) const { return row / block_rows * num_groups * group_stride() + row % block_rows * record_bytes(); }
};
constexpr int kRecordBytes = kGroupInputs + kRecordTailBytes;  // of the base's groups of 32

static inline int32_t offset_in(const uint8_t* record, size_t group_inputs) {
  int32_t offset;
  __builtin_memcpy(&offset, record + group_inputs, sizeof offset);
  return offset;
}
static inline float scale_in(const uint8_t* record, size_t group_inputs) {
  float scale;
  __builtin_memcpy(&scale, record + group_inputs + sizeof(int32_t), sizeof scale);
  return scale;
}

// A matrix in 8 bits, in two planes of 4: `high` alone is the matrix in 4 bits, and `low` what rounding took away.
// `low` has no data where there is one matrix of any encoding.
struct Planes {
  Matrix high, low;
};

// Whether a product replaces what lies in its output or is added to it.
enum class Store { kSet, kAdd };

}  // namespace socle
