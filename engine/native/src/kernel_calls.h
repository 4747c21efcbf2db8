// The kernels of an instruction set on whole arrays whose lengths are checked: for tests, which call them from Python
// or on another processor. Results are vectors of their own; wrong lengths are std::invalid_argument.
#pragma once

#include "inputs.h"

namespace socle {

// "int4", "int8", "float32", or "low_rank" for an adapter's B.
Encoding encoding_named(const std::string& name);

// What `quantise` makes of rows: values [num_groups * group_inputs], and the bytes of a `RecordTail` for each group.
constexpr int kTailWords = kRecordTailBytes / sizeof(int32_t);
struct QuantisedRows {
  std::vector<int8_t> values;
  std::vector<int32_t> tails;
};
QuantisedRows quantise(const Kernels&, FloatView x, int group_inputs);

// The rows that enter a product: dense [num_rows, inputs] for float32, else quantised [num_rows, padded inputs].
struct ProductInput {
  int num_rows = 0;
  FloatView dense;
  View<int8_t> values;
  IntView tails;
};
// Of rows first .. last - 1 and tiles first .. last - 1 of the matrix.
struct ProductPart {
  int first_row, last_row, first_tile, last_tile;
};
// [rows of the part, 16 * tiles of the part]; added to `start` of that size, unless it is empty.
std::vector<float> product(const Kernels&, const Matrix&, const ProductInput&, const ProductPart&, FloatView start);

std::vector<float> rms_norm(const Kernels&, FloatView x, FloatView weight, float eps);
std::vector<float> rotate(const Kernels&, FloatView head, FloatView cos, FloatView sin);
std::vector<float> add(const Kernels&, FloatView x, FloatView y);
std::vector<float> scale(const Kernels&, FloatView x, float factor);
std::vector<float> gate(const Kernels&, FloatView gate, FloatView up);
std::vector<float> expose(const Kernels&, FloatView x);
// Of x in tiles of 16, the last of which may be cut short.
std::vector<float> tile_tops(const Kernels&, FloatView x);

// "fp16" or "int8".
KvEncoding kv_encoding_named(const std::string& name);

// Keys and values [num_positions, head_dim] of one head.
struct CachedHead {
  KvEncoding encoding = KvEncoding::kHalf;
  int head_dim = 0;
  FloatView keys, values;
};
// The tiles that hold the head, one after the other.
std::vector<uint8_t> store_kv(const Kernels&, const CachedHead&);
// Queries [num_queries, head_dim] see the positions begins[i] .. ends[i] - 1. Returns [num_queries, head_dim].
std::vector<float> attend(const Kernels&, const CachedHead&, FloatView queries, IntView begins, IntView ends);

}  // namespace socle
