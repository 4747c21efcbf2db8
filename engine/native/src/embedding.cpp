#include "embedding.h"

#include <cmath>
#include <cstring>

namespace socle {
namespace {

// fp16 to float32 without an instruction set: an embedding row is short.
float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                                         : std::ldexp(static_cast<float>(fraction), -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

template <class Write>
void embed_plane(const Matrix& matrix, int index, Write&& write) {
  const int lane = index % kTileRows, zero = matrix.encoding == Encoding::kInt4 ? 8 : 128;
  const uint8_t* block = matrix.data + matrix.tile_bytes() * (index / kTileRows);
  for (int first = 0; first < matrix.inputs; first += kGroupInputs, block += matrix.block_bytes()) {
    uint16_t half;
    std::memcpy(&half, block + 2 * lane, sizeof half);
    const float scale = half_to_float(half);
    for (int i = 0; i < kGroupInputs && first + i < matrix.inputs; i++) {
      const int vector = i / kLaneInputs, byte = kScaleBytes + lane * kLaneInputs + i % kLaneInputs;
      int value = block[byte + kVectorBytes * (zero == 8 ? vector % 4 : vector)];
      if (zero == 8) value = vector < 4 ? value & 15 : value >> 4;
      write(first + i, static_cast<float>(value - zero) * scale);
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
  embed_plane(matrix.high, index, [out](int i, float x) { out[i] = x; });
  if (matrix.low.data) embed_plane(matrix.low, index, [out](int i, float x) { out[i] += x; });
}

}  // namespace socle
