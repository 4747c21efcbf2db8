// AVX2 with FMA: a vector of a block is two registers, so a tile is worked off in two halves of eight output rows.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx2.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 4;  // and 8 vectors of weights: the 16 registers are spent
  static constexpr int kRowsWorthDecoding = 0;  // never: nibbles take one multiplication less than bytes
  static constexpr bool kHasSubgroupOffsets = true;
  static constexpr int kHalfRows = 8;
  static constexpr int kHalfBytes = kVectorBytes / 2;
  static constexpr int kPrefetchBlocks = 2;

  static __m256i broadcast(const uint8_t* four) {
    int32_t lane;
    __builtin_memcpy(&lane, four, sizeof lane);
    return _mm256_set1_epi32(lane);
  }
  static __m256i bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i centred(const uint8_t* p) { return _mm256_xor_si256(bytes(p), _mm256_set1_epi8(-128)); }

  static __m256 half_scales(const uint8_t* scales, int half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 16 * half)));
  }
  static void write(float* out, __m256 value, Store store) {
    _mm256_storeu_ps(out, store == Store::kSet ? value : _mm256_add_ps(_mm256_loadu_ps(out), value));
  }

  template <Encoding encoding, int num_rows>
  [[gnu::always_inline]] static void run(const Piece& p) {
    for (int half = 0; half < 2; half++) {
      if constexpr (encoding == Encoding::kLowRank) {
        run_low_rank<num_rows>(p, half);
      } else {
        run_half<encoding, num_rows>(p, half);
      }
    }
  }

  template <Encoding encoding, int num_rows>
  static void run_half(const Piece& p, int half) {
    constexpr int kBlockBytes = encoding == Encoding::kInt4 ? kInt4BlockBytes : kInt8BlockBytes;
    constexpr int kScalesAt = encoding == Encoding::kInt4 ? kInt4ScalesAt : kInt8ScalesAt;
    __m256 total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = _mm256_setzero_ps();
    const uint8_t *block = p.tile, *records = p.records;
    for (int g = 0; g < p.num_groups; g++, block += kBlockBytes, records += p.group_stride) {
      for (int byte = 0; half == 0 && byte < kBlockBytes; byte += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchBlocks * kBlockBytes + byte, _MM_HINT_T0);
      }
      __m256i dots[num_rows];
      for (int r = 0; r < num_rows; r++) dots[r] = _mm256_setzero_si256();
      for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
        if constexpr (encoding == Encoding::kInt4) {
          add_int4<num_rows>(dots, block, half, subgroup, records);
        } else {
          add_int8<num_rows>(dots, block, half, subgroup, records);
        }
      }
      const __m256 weight_scale = half_scales(block + kScalesAt, half);
      for (int r = 0; r < num_rows; r++) {
        const __m256 row_scale = _mm256_set1_ps(scale_in(records + r * kRecordBytes, kGroupInputs));
        total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), _mm256_mul_ps(weight_scale, row_scale), total[r]);
      }
    }
    for (int r = 0; r < num_rows; r++) write(p.out + r * p.out_stride + kHalfRows * half, total[r], p.store);
  }

  // Unsigned nibbles: eight products of pairs, at most 8 * 2 * 15 * 127 = 30,480, fit into 16 bits. The last step of their
  // sum, two 16-bit numbers to one of 32, multiplies by the subgroup's multiplier.
  template <int num_rows>
  static void add_int4(__m256i* dots, const uint8_t* block, int half, int subgroup, const uint8_t* records) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i weights[8];
    for (int v = 0; v < 4; v++) {
      const __m256i packed = bytes(block + kInt4VectorsAt + kSubgroupBytes * subgroup + kVectorBytes * v + kHalfBytes * half);
      weights[v] = _mm256_and_si256(packed, low);
      weights[v + 4] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
    }
    const __m256i factor = multipliers(block, half, subgroup);
    const __m256i low_factor = _mm256_and_si256(factor, _mm256_set1_epi32(0xFFFF));
    for (int r = 0; r < num_rows; r++, records += kRecordBytes) {
      const uint8_t* x = records + kSubgroupInputs * subgroup;
      __m256i pairs = _mm256_maddubs_epi16(weights[0], broadcast(x));
      for (int v = 1; v < 8; v++) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[v], broadcast(x + kLaneInputs * v)));
      }
      const uint8_t* offsets = records + kGroupInputs + offsetof(RecordTail, subgroup_offsets);
      const __m256i offset = _mm256_madd_epi16(broadcast(offsets + sizeof(int32_t) * subgroup), low_factor);
      dots[r] = _mm256_add_epi32(dots[r], _mm256_add_epi32(_mm256_madd_epi16(pairs, factor), offset));
    }
  }

  // In both 16-bit halves of each output row's lane.
  static __m256i multipliers(const uint8_t* block, int half, int subgroup) {
    const __m256i all = bytes(block + kHalfBytes * half);
    const __m256i one = _mm256_srai_epi32(_mm256_slli_epi32(all, 24 - 8 * subgroup), 24);
    return _mm256_blend_epi16(one, _mm256_slli_epi32(one, 16), 0xAA);
  }

  template <int num_rows>
  static void add_int8(__m256i* dots, const uint8_t* block, int half, int subgroup, const uint8_t* records) {
    __m256i weights[8];
    for (int v = 0; v < 8; v++) weights[v] = centred(block + kVectorBytes * (8 * subgroup + v) + kHalfBytes * half);
    for (int r = 0; r < num_rows; r++) {
      const uint8_t* x = records + r * kRecordBytes + kSubgroupInputs * subgroup;
      for (int v = 0; v < 8; v++) dots[r] = _mm256_add_epi32(dots[r], dot_int8(weights[v], x + kLaneInputs * v));
    }
  }

  // Signed bytes: the sign moves to the activations, and a pair is at most 2 * 128 * 127 = 32,512.
  static __m256i dot_int8(__m256i weights, const uint8_t* x) {
    const __m256i signed_x = _mm256_sign_epi8(broadcast(x), weights);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_x), _mm256_set1_epi16(1));
  }

  template <int num_rows>
  static void run_low_rank(const Piece& p, int half) {
    const __m256 weight_scale = half_scales(p.tile + kVectorBytes * p.num_vectors, half);
    for (int r = 0; r < num_rows; r++) {
      const uint8_t* record = p.records + r * p.record_bytes;
      __m256i dots = _mm256_setzero_si256();
      for (int v = 0; v < p.num_vectors; v++) {
        const __m256i weights = centred(p.tile + kVectorBytes * v + kHalfBytes * half);
        dots = _mm256_add_epi32(dots, dot_int8(weights, record + kLaneInputs * v));
      }
      const __m256 row_scale = _mm256_set1_ps(scale_in(record, p.record_bytes - kRecordTailBytes));
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(weight_scale, row_scale));
      write(p.out + r * p.out_stride + kHalfRows * half, product, p.store);
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {

const Kernels kAvx2Kernels = {
    "avx2",
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); },
    TileProduct::kMaxRows, product, rms_norm, quantise, rotate, add_to, scale_by, gate_with, store_kv, attend,
    expose, tile_tops, stretch_tops, weigh, nullptr};

}  // namespace socle
