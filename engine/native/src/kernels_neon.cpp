// Neon with the dot product extension (Armv8.2): a vector of a block is four registers, so a tile is worked off in four
// quarters of four output rows. `sdot` by lane takes four activations of one row against four inputs of each output row.
#include <arm_neon.h>
#include <sys/auxv.h>

#include "kernels.h"
#include "vec_neon.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 4;
  static constexpr int kRowsWorthDecoding = 0;  // never: it is a multiplication for eight dot products of four rows
  static constexpr bool kHasSubgroupOffsets = false;
  static constexpr size_t kDecodedBlockBytes = 0;
  static constexpr int kQuarters = 4;
  static constexpr int kQuarterBytes = kVectorBytes / kQuarters;

  // The eight vectors of a subgroup, without their zero point.
  template <Encoding encoding>
  static void unpack(const uint8_t* block, int quarter, int subgroup, int8x16_t* weights) {
    if constexpr (encoding == Encoding::kInt4) {
      const int8x16_t factor = multipliers(block, quarter, subgroup), zero = vdupq_n_s8(8);
      const uint8_t* vectors = block + kInt4VectorsAt + kSubgroupBytes * subgroup + kQuarterBytes * quarter;
      for (int v = 0; v < 4; v++) {
        const uint8x16_t packed = vld1q_u8(vectors + kVectorBytes * v);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
        weights[v] = vmulq_s8(vsubq_s8(low, zero), factor);
        weights[v + 4] = vmulq_s8(vsubq_s8(high, zero), factor);
      }
    } else {
      const uint8_t* vectors = block + 8 * kVectorBytes * subgroup + kQuarterBytes * quarter;
      for (int v = 0; v < 8; v++) weights[v] = centred(vectors + kVectorBytes * v);
    }
  }
  // In each byte of an output row's lane.
  static int8x16_t multipliers(const uint8_t* block, int quarter, int subgroup) {
    static constexpr uint8_t kLanes[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const uint8x16_t all = vld1q_u8(block + kQuarterBytes * quarter);
    return vreinterpretq_s8_u8(vqtbl1q_u8(all, vaddq_u8(vld1q_u8(kLanes), vdupq_n_u8(static_cast<uint8_t>(subgroup)))));
  }
  static int8x16_t centred(const uint8_t* p) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128)));
  }

  // Sum of 32 products for each of four output rows.
  static int32x4_t dot(const int8x16_t* weights, const int8_t* x, int32x4_t total) {
    const int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 16);
    total = vdotq_laneq_s32(total, weights[0], first, 0);
    total = vdotq_laneq_s32(total, weights[1], first, 1);
    total = vdotq_laneq_s32(total, weights[2], first, 2);
    total = vdotq_laneq_s32(total, weights[3], first, 3);
    total = vdotq_laneq_s32(total, weights[4], second, 0);
    total = vdotq_laneq_s32(total, weights[5], second, 1);
    total = vdotq_laneq_s32(total, weights[6], second, 2);
    return vdotq_laneq_s32(total, weights[7], second, 3);
  }

  static float32x4_t quarter_scales(const uint8_t* scales, int quarter) {
    const auto* halves = reinterpret_cast<const uint16_t*>(scales) + 4 * quarter;
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
  }
  static void write(float* out, float32x4_t value, Store store) {
    vst1q_f32(out, store == Store::kSet ? value : vaddq_f32(vld1q_f32(out), value));
  }

  template <Encoding encoding, int num_rows>
  [[gnu::always_inline]] static void run(const Piece& p) {
    if constexpr (encoding == Encoding::kLowRank) return run_low_rank<num_rows>(p);
    constexpr int kBlockBytes = encoding == Encoding::kInt4 ? kInt4BlockBytes : kInt8BlockBytes;
    constexpr int kScalesAt = encoding == Encoding::kInt4 ? kInt4ScalesAt : kInt8ScalesAt;
    float32x4_t total[kQuarters][num_rows];
    for (int q = 0; q < kQuarters; q++)
      for (int r = 0; r < num_rows; r++) total[q][r] = vdupq_n_f32(0.0f);
    const uint8_t *block = p.tile, *records = p.records;
    for (int g = 0; g < p.num_groups; g++, block += kBlockBytes, records += p.group_stride) {
      for (int q = 0; q < kQuarters; q++) {
        int32x4_t dots[num_rows];
        for (int r = 0; r < num_rows; r++) dots[r] = vdupq_n_s32(0);
        for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
          int8x16_t weights[8];
          unpack<encoding>(block, q, subgroup, weights);
          for (int r = 0; r < num_rows; r++) {
            const auto* x = reinterpret_cast<const int8_t*>(records + r * kRecordBytes + kSubgroupInputs * subgroup);
            dots[r] = dot(weights, x, dots[r]);
          }
        }
        const float32x4_t weight_scale = quarter_scales(block + kScalesAt, q);
        for (int r = 0; r < num_rows; r++) {
          const float row_scale = scale_in(records + r * kRecordBytes, kGroupInputs);
          total[q][r] = vfmaq_f32(total[q][r], vcvtq_f32_s32(dots[r]), vmulq_n_f32(weight_scale, row_scale));
        }
      }
    }
    for (int q = 0; q < kQuarters; q++)
      for (int r = 0; r < num_rows; r++) write(p.out + r * p.out_stride + 4 * q, total[q][r], p.store);
  }

  template <int num_rows>
  static void run_low_rank(const Piece& p) {
    for (int r = 0; r < num_rows; r++) {
      const uint8_t* record = p.records + r * p.record_bytes;
      for (int q = 0; q < kQuarters; q++) {
        int32x4_t dots = vdupq_n_s32(0);
        for (int v = 0; v < p.num_vectors; v++) {
          int32_t four;
          __builtin_memcpy(&four, record + kLaneInputs * v, sizeof four);
          const int8x16_t weights = centred(p.tile + kVectorBytes * v + kQuarterBytes * q);
          dots = vdotq_s32(dots, weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
        }
        const float32x4_t weight_scale = quarter_scales(p.tile + kVectorBytes * p.num_vectors, q);
        const float row_scale = scale_in(record, p.record_bytes - kRecordTailBytes);
        const float32x4_t product = vmulq_f32(vcvtq_f32_s32(dots), vmulq_n_f32(weight_scale, row_scale));
        write(p.out + r * p.out_stride + 4 * q, product, p.store);
      }
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {

constexpr unsigned long kHwcapAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP of asm/hwcap.h

const Kernels kNeonKernels = this_set("neon", [] { return (getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0; });

}  // namespace socle
