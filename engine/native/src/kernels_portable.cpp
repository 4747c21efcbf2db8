// Plain C++ for every other processor, and the plainest statement of what the others compute.
#include "kernels.h"
#include "vec_portable.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 4;

  // The weight of an output row and an input of a block, without its zero point.
  template <Encoding encoding>
  static int weight(const uint8_t* vectors, int row, int input) {
    const int vector = input / kLaneInputs, byte = row * kLaneInputs + input % kLaneInputs;
    if constexpr (encoding == Encoding::kInt4) {
      const uint8_t pair = vectors[vector % 4 * kVectorBytes + byte];
      return (vector < 4 ? pair & 15 : pair >> 4) - 8;
    }
    return vectors[vector * kVectorBytes + byte] - 128;
  }

  template <Encoding encoding, int num_rows>
  static void run(const uint8_t* block, int num_groups, int num_vectors, const uint8_t* records, size_t record_bytes,
                  size_t group_stride, float* out, size_t out_stride, Store store) {
    const int num_products = encoding == Encoding::kLowRank ? num_vectors * kLaneInputs : kGroupInputs;
    const size_t block_bytes = kScaleBytes + static_cast<size_t>(num_vectors) * kVectorBytes;
    Vec total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = zeros();
    for (int g = 0; g < num_groups; g++, block += block_bytes, records += group_stride) {
      const Vec weight_scale = load_half(reinterpret_cast<const uint16_t*>(block));
      for (int lane = 0; lane < kTileRows; lane++) {
        for (int r = 0; r < num_rows; r++) {
          const uint8_t* record = records + r * record_bytes;
          const auto* x = reinterpret_cast<const int8_t*>(record);
          int dots = 0;
          for (int i = 0; i < num_products; i++) dots += weight<encoding>(block + kScaleBytes, lane, i) * x[i];
          const float scale = weight_scale.lane[lane] * scale_in(record, record_bytes - kRecordTailBytes);
          float& sum = total[r].lane[lane];
          sum = encoding == Encoding::kLowRank ? dots * scale : __builtin_fmaf(static_cast<float>(dots), scale, sum);
        }
      }
    }
    for (int r = 0; r < num_rows; r++) {
      float* y = out + r * out_stride;
      socle::store(y, store == Store::kSet ? total[r] : add(load(y), total[r]));
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {

const Kernels kPortableKernels = {"portable", [] { return true; }, TileProduct::kMaxRows, product,   rms_norm, quantise, rotate,
                                  add_to,     scale_by,            gate_with, store_kv, attend, expose,
                                  tile_tops,  stretch_tops, weigh,             nullptr};

}  // namespace socle
