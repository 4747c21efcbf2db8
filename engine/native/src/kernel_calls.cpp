#include "kernel_calls.h"

#include <cstring>
#include <cmath>
#include <stdexcept>

#include "buffer.h"

namespace socle {
namespace {

std::vector<float> copied(FloatView x) { return {x.data, x.data + x.size}; }

}  // namespace

Encoding encoding_named(const std::string& name) {
  if (name == "int4") return Encoding::kInt4;
  if (name == "int8") return Encoding::kInt8;
  if (name == "float32") return Encoding::kFloat32;
  if (name == "low_rank") return Encoding::kLowRank;
  throw std::invalid_argument("no encoding is called " + name);
}

QuantisedRows quantise(const Kernels& kernels, FloatView x, int group_inputs) {
  expect_that(group_inputs > 0 && group_inputs % kTileRows == 0, "a group is a multiple of 16 inputs");
  const size_t num_groups = x.size / group_inputs;
  expect_size(x.size, num_groups * group_inputs, "x in whole groups");
  QuantisedRows rows = {std::vector<int8_t>(x.size), std::vector<int32_t>(num_groups * kTailWords)};
  const size_t record_bytes = group_inputs + kRecordTailBytes;
  std::vector<uint8_t> records(num_groups * record_bytes);
  kernels.quantise(x.data, static_cast<int>(num_groups), group_inputs, records.data(), record_bytes);
  for (size_t group = 0; group < num_groups; group++) {
    const uint8_t* record = records.data() + group * record_bytes;
    std::memcpy(rows.values.data() + group * group_inputs, record, group_inputs);
    std::memcpy(rows.tails.data() + group * kTailWords, record + group_inputs, kRecordTailBytes);
  }
  return rows;
}

// ---- products

namespace {

// Rows in blocks of `block_rows`, with the records that they point into.
struct HeldRows {
  Rows rows;
  std::vector<uint8_t> records;
};

// Low-rank rows are padded to 16 inputs, as they come out of a tile of A.
HeldRows rows_of(const Matrix& matrix, const ProductInput& input, int block_rows) {
  const size_t num_rows = input.num_rows;
  HeldRows held;
  Rows& rows = held.rows;
  rows.dense = input.dense.data;
  rows.dense_stride = matrix.inputs;
  if (matrix.encoding == Encoding::kFloat32) {
    expect_size(input.dense.size, num_rows * matrix.inputs, "dense rows");
    return held;
  }
  rows.num_groups = matrix.num_groups();
  rows.group_inputs = matrix.encoding == Encoding::kLowRank ? round_up(matrix.inputs, kTileRows) : kGroupInputs;
  rows.block_rows = block_rows;
  const size_t num_groups = rows.num_groups, group_inputs = rows.group_inputs;
  expect_size(input.values.size, num_rows * num_groups * group_inputs, "values of the rows");
  expect_size(input.tails.size, num_rows * num_groups * kTailWords, "tails of the rows");
  held.records.resize((num_rows + block_rows) * num_groups * rows.record_bytes());
  for (size_t i = 0; i < num_rows * num_groups; i++) {
    const int row = static_cast<int>(i / num_groups);
    uint8_t* record = held.records.data() + rows.offset_of(row) + i % num_groups * rows.group_stride();
    std::memcpy(record, input.values.data + i * group_inputs, group_inputs);
    std::memcpy(record + group_inputs, input.tails.data + i * kTailWords, kRecordTailBytes);
  }
  rows.records = held.records.data();
  return held;
}

}  // namespace

std::vector<float> product(const Kernels& kernels, const Matrix& matrix, const ProductInput& input,
                           const ProductPart& part, FloatView start) {
  expect_that(0 <= part.first_row && part.first_row <= part.last_row && part.last_row <= input.num_rows,
              "rows are not in the input");
  expect_that(0 <= part.first_tile && part.first_tile <= part.last_tile && part.last_tile <= matrix.num_tiles(),
              "tiles are not in the matrix");
  const int num_rows = part.last_row - part.first_row;
  const size_t stride = static_cast<size_t>(part.last_tile - part.first_tile) * kTileRows;
  std::vector<float> out = start.size ? copied(start) : std::vector<float>(num_rows * stride);
  expect_size(out.size(), num_rows * stride, "start of the sums");
  const HeldRows held = rows_of(matrix, input, kernels.max_block_rows);
  const Buffer<uint8_t> decoded(kernels.decoded_block_bytes * matrix.num_groups());
  kernels.product(matrix, held.rows, part.first_row, num_rows, part.first_tile, part.last_tile, out.data(),
                  stride, start.size ? Store::kAdd : Store::kSet, decoded.data());
  return out;
}

// ---- rows

std::vector<float> rms_norm(const Kernels& kernels, FloatView x, FloatView weight, float eps) {
  expect_size(weight.size, x.size, "weights of the norm");
  std::vector<float> out(x.size);
  kernels.rms_norm(x.data, weight.data, static_cast<int>(x.size), eps, out.data());
  return out;
}

std::vector<float> rotate(const Kernels& kernels, FloatView head, FloatView cos, FloatView sin) {
  expect_that(head.size % 2 == 0, "a head has an even number of dimensions");
  expect_size(cos.size, head.size / 2, "cosines");
  expect_size(sin.size, head.size / 2, "sines");
  std::vector<float> out = copied(head);
  kernels.rotate(out.data(), cos.data, sin.data, static_cast<int>(out.size()));
  return out;
}

std::vector<float> add(const Kernels& kernels, FloatView x, FloatView y) {
  expect_size(y.size, x.size, "what is added");
  std::vector<float> out = copied(x);
  kernels.add(out.data(), y.data, static_cast<int>(out.size()));
  return out;
}

std::vector<float> scale(const Kernels& kernels, FloatView x, float factor) {
  std::vector<float> out = copied(x);
  kernels.scale(out.data(), factor, static_cast<int>(out.size()));
  return out;
}

std::vector<float> gate(const Kernels& kernels, FloatView gate, FloatView up) {
  expect_size(up.size, gate.size, "what is gated");
  std::vector<float> out = copied(gate);
  kernels.gate(out.data(), up.data, static_cast<int>(out.size()));
  return out;
}

std::vector<float> expose(const Kernels& kernels, FloatView x) {
  std::vector<float> out = copied(x);
  kernels.expose(out.data(), static_cast<int>(out.size()));
  return out;
}

std::vector<float> tile_tops(const Kernels& kernels, FloatView x) {
  const size_t num_tiles = (x.size + kTileRows - 1) / kTileRows;
  std::vector<float> whole = copied(x), tops(num_tiles);
  whole.resize(num_tiles * kTileRows, HUGE_VALF);  // a kernel that looks there is found out
  kernels.tile_tops(whole.data(), 0, static_cast<int>(num_tiles), static_cast<int>(x.size), tops.data());
  return tops;
}

// ---- attention

namespace {

int num_positions(const CachedHead& head) {
  expect_that(head.head_dim > 0, "a head has dimensions");
  const size_t count = head.keys.size / head.head_dim;
  expect_size(head.keys.size, count * head.head_dim, "keys");
  expect_size(head.values.size, head.keys.size, "values");
  return static_cast<int>(count);
}

void check_queries(int num_positions, IntView begins, IntView ends) {
  expect_that(begins.size <= kMaxQueries, "too many queries at once");
  expect_size(ends.size, begins.size, "ends");
  for (size_t i = 0; i < begins.size; i++) {
    expect_that(0 <= begins.data[i] && begins.data[i] < ends.data[i] && ends.data[i] <= num_positions,
                "a query sees at least one position, and none behind the last");
  }
}

}  // namespace

KvEncoding kv_encoding_named(const std::string& name) {
  expect_that(name == "fp16" || name == "int8", "keys and values are kept as fp16 or int8");
  return name == "fp16" ? KvEncoding::kHalf : KvEncoding::kInt8;
}

std::vector<uint8_t> store_kv(const Kernels& kernels, const CachedHead& head) {
  const KvLayout layout = {head.encoding, head.head_dim};
  const int count = num_positions(head);
  std::vector<uint8_t> tiles(layout.tile_bytes() * (round_up(count, kTilePositions) / kTilePositions));
  for (int i = 0; i < count; i++) {
    uint8_t* tile = tiles.data() + layout.tile_bytes() * (i / kTilePositions);
    const size_t at = static_cast<size_t>(i) * layout.head_dim;
    kernels.store_kv(layout, tile, i % kTilePositions, head.keys.data + at, head.values.data + at);
  }
  return tiles;
}

std::vector<float> attend(const Kernels& kernels, const CachedHead& head, FloatView queries, IntView begins,
                          IntView ends) {
  const KvLayout layout = {head.encoding, head.head_dim};
  const int count = num_positions(head), num_queries = static_cast<int>(begins.size);
  expect_size(queries.size, begins.size * head.head_dim, "queries");
  check_queries(count, begins, ends);
  if (num_queries == 0) return {};

  const std::vector<uint8_t> cache = store_kv(kernels, head);
  std::vector<const uint8_t*> tiles;
  for (size_t at = 0; at < cache.size(); at += layout.tile_bytes()) tiles.push_back(cache.data() + at);
  std::vector<float> out(queries.size);
  const float* query_rows[kMaxQueries];
  float* output_rows[kMaxQueries];
  for (int i = 0; i < num_queries; i++) {
    query_rows[i] = queries.data + static_cast<size_t>(i) * head.head_dim;
    output_rows[i] = out.data() + static_cast<size_t>(i) * head.head_dim;
  }
  const size_t score_stride = round_up(count, kTilePositions);
  std::vector<float> scores(score_stride * kMaxQueries);
  kernels.attend({layout, tiles.data(), query_rows, output_rows, begins.data, ends.data, num_queries, scores.data(),
                  score_stride});
  return out;
}

}  // namespace socle
