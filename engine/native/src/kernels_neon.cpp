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
  static constexpr int kQuarters = 4;
  static constexpr int kQuarterBytes = kVectorBytes / kQuarters;

  // Nibbles stay unsigned, 0 .. 15, and the offset pays for their zero point; bytes are centred.
  template <Encoding encoding>
  static void unpack(const uint8_t* quarter, int8x16_t* weights) {
    if constexpr (encoding == Encoding::kInt4) {
      for (int v = 0; v < 4; v++) {
        const uint8x16_t packed = vld1q_u8(quarter + kVectorBytes * v);
        weights[v] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
        weights[v + 4] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
      }
    } else {
      for (int v = 0; v < 8; v++) weights[v] = centred(quarter + kVectorBytes * v);
    }
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

  static float32x4_t quarter_scales(const uint8_t* block, int quarter) {
    const auto* halves = reinterpret_cast<const uint16_t*>(block) + 4 * quarter;
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
  }
  static void write(float* out, float32x4_t value, Store store) {
    vst1q_f32(out, store == Store::kSet ? value : vaddq_f32(vld1q_f32(out), value));
  }

  template <Encoding encoding, int num_rows>
  static void run(const uint8_t* block, int num_groups, int num_vectors, const uint8_t* records, size_t record_bytes,
                  size_t group_stride, float* out, size_t out_stride, Store store) {
    if constexpr (encoding == Encoding::kLowRank) {
      return run_low_rank<num_rows>(block, num_vectors, records, record_bytes, out, out_stride, store);
    }
    constexpr size_t kBlockBytes = kScaleBytes + kVectorBytes * (encoding == Encoding::kInt4 ? 4 : 8);
    float32x4_t total[kQuarters][num_rows];
    for (int q = 0; q < kQuarters; q++)
      for (int r = 0; r < num_rows; r++) total[q][r] = vdupq_n_f32(0.0f);
    for (int g = 0; g < num_groups; g++, block += kBlockBytes, records += group_stride) {
      for (int q = 0; q < kQuarters; q++) {
        const float32x4_t weight_scale = quarter_scales(block, q);
        int8x16_t weights[8];
        unpack<encoding>(block + kScaleBytes + kQuarterBytes * q, weights);
        for (int r = 0; r < num_rows; r++) {
          const uint8_t* x = records + r * kRecordBytes;
          const int32x4_t start = vdupq_n_s32(encoding == Encoding::kInt4 ? offset_in(x, kGroupInputs) : 0);
          const int32x4_t dots = dot(weights, reinterpret_cast<const int8_t*>(x), start);
          const float32x4_t scale = vmulq_n_f32(weight_scale, scale_in(x, kGroupInputs));
          total[q][r] = vfmaq_f32(total[q][r], vcvtq_f32_s32(dots), scale);
        }
      }
    }
    for (int q = 0; q < kQuarters; q++)
      for (int r = 0; r < num_rows; r++) write(out + r * out_stride + 4 * q, total[q][r], store);
  }

  template <int num_rows>
  static void run_low_rank(const uint8_t* block, int num_vectors, const uint8_t* records, size_t record_bytes, float* out,
                           size_t out_stride, Store store) {
    for (int r = 0; r < num_rows; r++, records += record_bytes) {
      for (int q = 0; q < kQuarters; q++) {
        int32x4_t dots = vdupq_n_s32(0);
        for (int v = 0; v < num_vectors; v++) {
          int32_t four;
          __builtin_memcpy(&four, records + kLaneInputs * v, sizeof four);
          const int8x16_t weights = centred(block + kScaleBytes + kVectorBytes * v + kQuarterBytes * q);
          dots = vdotq_s32(dots, weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
        }
        const float32x4_t scale = vmulq_n_f32(quarter_scales(block, q), scale_in(records, record_bytes - kRecordTailBytes));
        write(out + r * out_stride + 4 * q, vmulq_f32(vcvtq_f32_s32(dots), scale), store);
      }
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {

constexpr unsigned long kHwcapAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP of asm/hwcap.h

const Kernels kNeonKernels = {"neon",  [] { return (getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0; },
                              TileProduct::kMaxRows, product, rms_norm, quantise, rotate, add_to, scale_by, gate_with,
                              store_kv, attend, expose, tile_tops, stretch_tops, weigh, nullptr};

}  // namespace socle
