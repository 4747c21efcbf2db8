// AVX2 with FMA: a vector of a block is two registers, so a tile is worked off in two halves of eight output rows.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx2.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 4;  // and 8 vectors of weights: the 16 registers are spent
  static constexpr int kHalfRows = 8;
  static constexpr int kHalfBytes = kVectorBytes / 2;
  static constexpr int kPrefetchBlocks = 8;

  static __m256i broadcast(const uint8_t* four) {
    int32_t lane;
    __builtin_memcpy(&lane, four, sizeof lane);
    return _mm256_set1_epi32(lane);
  }
  static __m256i bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

  // Unsigned nibbles: eight products of pairs, at most 8 * 2 * 15 * 127 = 30,480, fit into 16 bits.
  static __m256i dot_int4(const __m256i* weights, const uint8_t* x, int32_t offset) {
    __m256i pairs = _mm256_maddubs_epi16(weights[0], broadcast(x));
    for (int v = 1; v < 8; v++) {
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[v], broadcast(x + kLaneInputs * v)));
    }
    return _mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), _mm256_set1_epi32(offset));
  }

  // Signed bytes: the sign moves to the activations, and a pair is at most 2 * 128 * 127 = 32,512.
  static __m256i dot_int8(const __m256i* weights, int num_vectors, const uint8_t* x) {
    __m256i total = _mm256_setzero_si256();
    for (int v = 0; v < num_vectors; v++) {
      const __m256i signed_x = _mm256_sign_epi8(broadcast(x + kLaneInputs * v), weights[v]);
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[v]), signed_x);
      total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return total;
  }

  static __m256i centred(const uint8_t* p) { return _mm256_xor_si256(bytes(p), _mm256_set1_epi8(-128)); }

  template <Encoding encoding>
  static void unpack(const uint8_t* half, __m256i* weights) {
    if constexpr (encoding == Encoding::kInt4) {
      const __m256i low = _mm256_set1_epi8(15);
      for (int v = 0; v < 4; v++) {
        const __m256i packed = bytes(half + kVectorBytes * v);
        weights[v] = _mm256_and_si256(packed, low);
        weights[v + 4] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
      }
    } else {
      for (int v = 0; v < 8; v++) weights[v] = centred(half + kVectorBytes * v);
    }
  }

  static __m256 half_scales(const uint8_t* block, int half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * half)));
  }
  static void write(float* out, __m256 value, Store store) {
    _mm256_storeu_ps(out, store == Store::kSet ? value : _mm256_add_ps(_mm256_loadu_ps(out), value));
  }

  template <Encoding encoding, int num_rows>
  static void run(const uint8_t* block, int num_groups, int num_vectors, const uint8_t* records, size_t record_bytes,
                  size_t group_stride, float* out, size_t out_stride, Store store) {
    for (int half = 0; half < 2; half++, out += kHalfRows) {
      if constexpr (encoding == Encoding::kLowRank) {
        run_low_rank<num_rows>(block, half, num_vectors, records, record_bytes, out, out_stride, store);
      } else {
        run_half<encoding, num_rows>(block, half, num_groups, records, group_stride, out, out_stride, store);
      }
    }
  }

  template <Encoding encoding, int num_rows>
  static void run_half(const uint8_t* block, int half, int num_groups, const uint8_t* records, size_t group_stride,
                       float* out, size_t out_stride, Store store) {
    constexpr size_t kBlockBytes = kScaleBytes + kVectorBytes * (encoding == Encoding::kInt4 ? 4 : 8);
    __m256 total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = _mm256_setzero_ps();
    for (int g = 0; g < num_groups; g++, block += kBlockBytes, records += group_stride) {
      if (half == 0) {
        for (size_t byte = 0; byte < kBlockBytes; byte += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchBlocks * kBlockBytes + byte, _MM_HINT_T0);
        }
      }
      const __m256 weight_scale = half_scales(block, half);
      __m256i weights[8];
      unpack<encoding>(block + kScaleBytes + kHalfBytes * half, weights);
      for (int r = 0; r < num_rows; r++) {
        const uint8_t* x = records + r * kRecordBytes;
        const __m256i dots =
            encoding == Encoding::kInt4 ? dot_int4(weights, x, offset_in(x, kGroupInputs)) : dot_int8(weights, 8, x);
        const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(scale_in(x, kGroupInputs)));
        total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, total[r]);
      }
    }
    for (int r = 0; r < num_rows; r++) write(out + r * out_stride, total[r], store);
  }

  template <int num_rows>
  static void run_low_rank(const uint8_t* block, int half, int num_vectors, const uint8_t* records, size_t record_bytes,
                           float* out, size_t out_stride, Store store) {
    const __m256 weight_scale = half_scales(block, half);
    const uint8_t* vectors = block + kScaleBytes + kHalfBytes * half;
    for (int r = 0; r < num_rows; r++, records += record_bytes) {
      __m256i dots = _mm256_setzero_si256();
      for (int v = 0; v < num_vectors; v++) {
        const __m256i weights = centred(vectors + kVectorBytes * v);
        dots = _mm256_add_epi32(dots, dot_int8(&weights, 1, records + kLaneInputs * v));
      }
      const float row_scale = scale_in(records, record_bytes - kRecordTailBytes);
      const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(row_scale));
      write(out + r * out_stride, _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scale), store);
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
