// AVX-512 with VNNI: one vector of a block is one register, and `vpdpbusd` multiplies unsigned weights by signed
// activations, four inputs to a lane.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx512.h"

namespace socle {
namespace {

struct TileProduct {
  // 8 rows of activations, 8 vectors of weights and their scales fill the 32 registers with room for sums in flight.
  static constexpr int kMaxRows = 16;
  static constexpr int kPrefetchBlocks = 8;  // the hardware stops at 4 KB pages, the distance hides that

  static __m512i broadcast(const uint8_t* four) {
    int32_t lane;
    __builtin_memcpy(&lane, four, sizeof lane);
    return _mm512_set1_epi32(lane);
  }

  template <Encoding encoding>
  static void unpack(const uint8_t* vectors, __m512i* weights) {
    if constexpr (encoding == Encoding::kInt4) {
      const __m512i low = _mm512_set1_epi8(15);
      for (int v = 0; v < 4; v++) {
        const __m512i packed = _mm512_loadu_si512(vectors + kVectorBytes * v);
        weights[v] = _mm512_and_si512(packed, low);
        weights[v + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
      }
    } else {
      for (int v = 0; v < 8; v++) weights[v] = _mm512_loadu_si512(vectors + kVectorBytes * v);
    }
  }

  // What the zero point adds: offsets are made for 8, and 128 is 16 times as much.
  template <Encoding encoding>
  static __m512i zero_point(int32_t offset) {
    return _mm512_set1_epi32(encoding == Encoding::kInt4 ? offset : 16 * offset);
  }

  static void write(float* out, __m512 value, Store store) {
    _mm512_storeu_ps(out, store == Store::kSet ? value : _mm512_add_ps(_mm512_loadu_ps(out), value));
  }

  template <Encoding encoding, int num_rows>
  static void run(const uint8_t* block, int num_groups, int num_vectors, const uint8_t* records, size_t record_bytes,
                  size_t group_stride, float* out, size_t out_stride, Store store) {
    if constexpr (encoding == Encoding::kLowRank) {
      return run_low_rank<num_rows>(block, num_vectors, records, record_bytes, out, out_stride, store);
    }
    constexpr size_t kBlockBytes = kScaleBytes + kVectorBytes * (encoding == Encoding::kInt4 ? 4 : 8);
    __m512 total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < num_groups; g++, block += kBlockBytes, records += group_stride) {
      for (size_t byte = 0; byte < kBlockBytes; byte += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchBlocks * kBlockBytes + byte, _MM_HINT_T0);
      }
      const __m512 weight_scale = load_half(reinterpret_cast<const uint16_t*>(block));
      __m512i weights[8];
      unpack<encoding>(block + kScaleBytes, weights);
      for (int r = 0; r < num_rows; r++) {
        const uint8_t* x = records + r * kRecordBytes;
        __m512i dots = zero_point<encoding>(offset_in(x, kGroupInputs));
        for (int v = 0; v < 8; v++) dots = _mm512_dpbusd_epi32(dots, weights[v], broadcast(x + kLaneInputs * v));
        const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale_in(x, kGroupInputs)));
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, total[r]);
      }
    }
    for (int r = 0; r < num_rows; r++) write(out + r * out_stride, total[r], store);
  }

  template <int num_rows>
  static void run_low_rank(const uint8_t* block, int num_vectors, const uint8_t* records, size_t record_bytes, float* out,
                           size_t out_stride, Store store) {
    const size_t group_inputs = record_bytes - kRecordTailBytes;
    const __m512 weight_scale = load_half(reinterpret_cast<const uint16_t*>(block));
    __m512i dots[num_rows];
    for (int r = 0; r < num_rows; r++) dots[r] = _mm512_setzero_si512();
    for (int v = 0; v < num_vectors; v++) {
      const __m512i weights = _mm512_loadu_si512(block + kScaleBytes + kVectorBytes * v);
      for (int r = 0; r < num_rows; r++) {
        dots[r] = _mm512_dpbusd_epi32(dots[r], weights, broadcast(records + r * record_bytes + kLaneInputs * v));
      }
    }
    for (int r = 0; r < num_rows; r++) {
      const uint8_t* record = records + r * record_bytes;
      const float scale = scale_in(record, group_inputs);
      dots[r] = _mm512_add_epi32(dots[r], zero_point<Encoding::kLowRank>(offset_in(record, group_inputs)));
      write(out + r * out_stride, _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r]), _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale))), store);
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {
namespace {

// As many sums as hide the latency of `vpdpbusd`.
int64_t dot_products(int64_t rounds) {
  constexpr int kNumSums = 12;
  __m512i sums[kNumSums];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i weights = _mm512_set1_epi8(3), values = _mm512_set1_epi8(5);
  for (int64_t round = 0; round < rounds; round++) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, weights, values);
    asm volatile("" : : "v"(sums[0]), "v"(sums[kNumSums - 1]));
  }
  __m512i total = sums[0];
  for (int i = 1; i < kNumSums; i++) total = _mm512_add_epi32(total, sums[i]);
  volatile int kept = _mm512_reduce_add_epi32(total);
  (void)kept;
  return rounds * kNumSums * kVectorBytes;
}

}  // namespace

const Kernels kAvx512VnniKernels = {
    "avx512vnni",
    [] {
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    },
    TileProduct::kMaxRows, product, rms_norm, quantise, rotate, add_to, scale_by, gate_with, store_kv, attend,
    expose, tile_tops, stretch_tops, weigh, dot_products};

}  // namespace socle
