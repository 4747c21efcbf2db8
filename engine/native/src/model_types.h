// The values that the core computes with: weights as they lie in the mapped file, and the rows of a step.
//
// Knows layouts and sizes; owns no memory and computes nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace socle {

// A matrix [rows, inputs] is cut into tiles of 16 output rows and groups of 128 inputs. A block is one group of one tile:
//
//   int8   32 vectors of 64 bytes, 16 fp16 scales, 32 bytes of padding
//   int4   a vector of multipliers, 16 fp16 scales,
//          4 subgroups of 4 vectors: low nibbles are inputs 0..15 of the subgroup, high ones 16..31
//
//             lane 0 = row 0      lane 1 = row 1              lane 15 = row 15
//   vector v  [in 4v .. 4v+3]     [in 4v .. 4v+3]     ...     [in 4v .. 4v+3]         one 32-bit lane is four inputs
//
// Values are unsigned with zero point 8 or 128. Byte s of a lane of the multipliers, -15 .. 15, belongs to subgroup s:
// an int4 block is a short form of the int8 block with the values (q - 8) * multiplier + 128 and the same scales. So the
// products of a group are integers, exact in any order, and a set may run either form. One vector is one AVX-512
// register, two of AVX2, four of Neon: the same bytes run on all of them. `engine/layout.py` writes them.
constexpr int kTileRows = 16;
constexpr int kGroupInputs = 128;
constexpr int kSubgroupInputs = 32;
constexpr int kGroupSubgroups = kGroupInputs / kSubgroupInputs;
constexpr int kScaleBytes = 2 * kTileRows;
constexpr int kVectorBytes = 64;
constexpr int kLaneInputs = 4;
constexpr int kInt4Vectors = 16;  // of a block
constexpr int kInt8Vectors = 32;
constexpr int kSubgroupBytes = kVectorBytes * kInt4Vectors / kGroupSubgroups;  // of an int4 block
constexpr int kInt4ScalesAt = kVectorBytes;  // behind the multipliers
constexpr int kInt4VectorsAt = kInt4ScalesAt + kScaleBytes;
constexpr int kInt8ScalesAt = kVectorBytes * kInt8Vectors;
constexpr int kInt4BlockBytes = kInt4VectorsAt + kVectorBytes * kInt4Vectors;
constexpr int kInt8BlockBytes = kInt8ScalesAt + 2 * kScaleBytes;

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

enum class Encoding : int {
  kInt4,
  kInt8,
  kFloat32,  // plain [rows, inputs], for parity tests
  kLowRank,  // vectors of int8 and 16 scales for all inputs: an adapter's B, whose inputs are its rank
  kDecoded,  // what a set makes of int4 blocks before many rows run on them; lies in no file
};

// The value of an output row and an input of a block, without its zero point.
static inline int int8_value(const uint8_t* block, int row, int input) {
  return block[input / kLaneInputs * kVectorBytes + row * kLaneInputs + input % kLaneInputs] - 128;
}
static inline int int4_value(const uint8_t* block, int row, int input) {
  const int subgroup = input / kSubgroupInputs, vector = input % kSubgroupInputs / kLaneInputs;
  const uint8_t* vectors = block + kInt4VectorsAt + kSubgroupBytes * subgroup;
  const uint8_t pair = vectors[vector % 4 * kVectorBytes + row * kLaneInputs + input % kLaneInputs];
  const auto multiplier = static_cast<int8_t>(block[row * kLaneInputs + subgroup]);
  return ((vector < 4 ? pair & 15 : pair >> 4) - 8) * multiplier;
}

struct Matrix {
  const uint8_t* data = nullptr;
  int rows = 0;
  int inputs = 0;
  Encoding encoding = Encoding::kInt4;

  int num_tiles() const { return round_up(rows, kTileRows) / kTileRows; }
  int num_groups() const { return encoding == Encoding::kLowRank ? 1 : round_up(inputs, kGroupInputs) / kGroupInputs; }
  int vectors_per_block() const {
    if (encoding == Encoding::kLowRank) return round_up(inputs, kLaneInputs) / kLaneInputs;
    return encoding == Encoding::kInt4 ? kInt4Vectors : kInt8Vectors;
  }
  size_t block_bytes() const {
    if (encoding == Encoding::kInt4) return kInt4BlockBytes;
    if (encoding == Encoding::kInt8) return kInt8BlockBytes;
    return static_cast<size_t>(kVectorBytes) * vectors_per_block() + kScaleBytes;
  }
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
//   record   group_inputs int8 values, a RecordTail
//
// The scale is the group's largest magnitude / 127. The offsets are what the zero points add: -128 * the sum of the values
// for int8, and for int4 -8 * the sum of a subgroup's, whole or in 16-bit parts as a set wants it
// (`TileProduct::subgroup_offset`). Sets whose products need none of these last do not write them, and groups of another
// size than the base's have none. For float32 weights the rows stay as they were:
// dense [num_rows, dense_stride].
struct RecordTail {
  int32_t offset;
  float scale;
  int32_t subgroup_offsets[kGroupSubgroups];
};
constexpr int kRecordTailBytes = sizeof(RecordTail);
struct Rows {
  const float* dense = nullptr;
  size_t dense_stride = 0;
  const uint8_t* records = nullptr;
  int num_groups = 0;
  int group_inputs = kGroupInputs;
  int block_rows = 1;  // at most `Kernels::max_block_rows`

  size_t record_bytes() const { return group_inputs + kRecordTailBytes; }
  size_t group_stride() const { return block_rows * record_bytes(); }
  size_t offset_of(int row) const { return row / block_rows * num_groups * group_stride() + row % block_rows * record_bytes(); }
};
constexpr int kRecordBytes = kGroupInputs + kRecordTailBytes;  // of the base's groups

static inline int32_t offset_in(const uint8_t* record, size_t group_inputs) {
  int32_t offset;
  __builtin_memcpy(&offset, record + group_inputs + offsetof(RecordTail, offset), sizeof offset);
  return offset;
}
static inline float scale_in(const uint8_t* record, size_t group_inputs) {
  float scale;
  __builtin_memcpy(&scale, record + group_inputs + offsetof(RecordTail, scale), sizeof scale);
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
