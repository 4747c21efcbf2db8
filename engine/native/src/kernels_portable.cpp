// Plain C++ for every other processor, and the plainest statement of what the others compute.
#include "kernels.h"
#include "vec_portable.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 4;
  static constexpr int kRowsWorthDecoding = 8;
  static constexpr bool kHasSubgroupOffsets = true;
  static constexpr size_t kDecodedBlockBytes = kInt8BlockBytes;

  static int32_t subgroup_offset(int sum, Vec) { return -8 * sum; }

  // To int8 blocks.
  static void decode(const uint8_t* block, int num_groups, uint8_t* out) {
    for (int g = 0; g < num_groups; g++, block += kInt4BlockBytes, out += kInt8BlockBytes) {
      for (int input = 0; input < kGroupInputs; input++) {
        for (int row = 0; row < kTileRows; row++) {
          const int byte = input / kLaneInputs * kVectorBytes + row * kLaneInputs + input % kLaneInputs;
          out[byte] = static_cast<uint8_t>(int4_value(block, row, input) + 128);
        }
      }
      __builtin_memcpy(out + kInt8ScalesAt, block + kInt4ScalesAt, kScaleBytes);
    }
  }

  template <Encoding encoding, int num_rows>
  [[gnu::always_inline]] static void run(const Piece& p) {
    const int num_products = encoding == Encoding::kLowRank ? p.num_vectors * kLaneInputs : kGroupInputs;
    const int block_bytes = encoding == Encoding::kInt4 ? kInt4BlockBytes : kInt8BlockBytes;
    const int scales_at = encoding == Encoding::kInt4      ? kInt4ScalesAt
                          : encoding == Encoding::kLowRank ? kVectorBytes * p.num_vectors
                                                           : kInt8ScalesAt;
    Vec total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = zeros();
    const uint8_t *block = p.tile, *records = p.records;
    for (int g = 0; g < p.num_groups; g++, block += block_bytes, records += p.group_stride) {
      const Vec weight_scale = load_half(reinterpret_cast<const uint16_t*>(block + scales_at));
      for (int lane = 0; lane < kTileRows; lane++) {
        for (int r = 0; r < num_rows; r++) {
          const uint8_t* record = records + r * p.record_bytes;
          const auto* x = reinterpret_cast<const int8_t*>(record);
          int dots = 0;
          for (int i = 0; i < num_products; i++) {
            dots += x[i] * (encoding == Encoding::kInt4 ? int4_value(block, lane, i) : int8_value(block, lane, i));
          }
          const float scale = weight_scale.lane[lane] * scale_in(record, p.record_bytes - kRecordTailBytes);
          float& sum = total[r].lane[lane];
          sum = encoding == Encoding::kLowRank ? dots * scale : __builtin_fmaf(static_cast<float>(dots), scale, sum);
        }
      }
    }
    for (int r = 0; r < num_rows; r++) {
      float* y = p.out + r * p.out_stride;
      socle::store(y, p.store == Store::kSet ? total[r] : add(load(y), total[r]));
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {

const Kernels kPortableKernels = this_set("portable", [] { return true; });

}  // namespace socle
