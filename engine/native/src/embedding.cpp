#include "embedding.h"

#include <cstring>

#include "vec_portable.h"  // half_to_float: an embedding row is short

namespace socle {
namespace {

// Adds the row to out.
void add_plane(const Matrix& matrix, int index, float* out) {
  const bool is_int4 = matrix.encoding == Encoding::kInt4;
  const int lane = index % kTileRows;
  const uint8_t* block = matrix.data + matrix.tile_bytes() * (index / kTileRows);
  for (int first = 0; first < matrix.inputs; first += kGroupInputs, block += matrix.block_bytes()) {
    uint16_t half;
    std::memcpy(&half, block + (is_int4 ? kInt4ScalesAt : kInt8ScalesAt) + sizeof half * lane, sizeof half);
    const float scale = half_to_float(half);
    for (int i = 0; i < kGroupInputs && first + i < matrix.inputs; i++) {
      const int value = is_int4 ? int4_value(block, lane, i) : int8_value(block, lane, i);
      out[first + i] += static_cast<float>(value) * scale;
    }
  }
}

}  // namespace

void embed(const Planes& matrix, int index, float* out) {
  if (matrix.high.encoding == Encoding::kFloat32) {
    const size_t row_bytes = sizeof(float) * static_cast<size_t>(matrix.high.inputs);
    std::memcpy(out, matrix.high.data + row_bytes * index, row_bytes);
    return;
  }
  std::memset(out, 0, sizeof(float) * matrix.high.inputs);
  add_plane(matrix.high, index, out);
  if (matrix.low.data) add_plane(matrix.low, index, out);
}

}  // namespace socle
