// AVX-512 with VNNI: one vector of a block is one register, and `vpdpbusd` multiplies unsigned weights by signed
// activations, four inputs to a lane.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx512.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 8;  // as many sums hide the latency of a product; 12 were no faster
  static constexpr int kRowsWorthDecoding = 9;
  static constexpr bool kHasSubgroupOffsets = false;

  static __m512i broadcast(const uint8_t* four) {
    int32_t lane;
    __builtin_memcpy(&lane, four, sizeof lane);
    return _mm512_set1_epi32(lane);
  }

  // Brings the nibbles of a subgroup to (q - 8) * multiplier + 128. Two bytes are multiplied as one number: what the
  // lower one carries or borrows goes out again when 128 - 8 * multiplier has been added to both.
  struct Multipliers {
    __m512i factor, offset;

    Multipliers(const uint8_t* block, int subgroup) {
      const __m512i all = _mm512_loadu_si512(block + kMultipliersAt);
      const __m512i one = _mm512_srai_epi32(_mm512_slli_epi32(all, 24 - 8 * subgroup), 24);
      factor = _mm512_mask_blend_epi16(0xAAAAAAAA, one, _mm512_slli_epi32(one, 16));
      offset = _mm512_add_epi16(_mm512_mullo_epi16(factor, _mm512_set1_epi16(-8 * 257)),
                                _mm512_set1_epi16(static_cast<int16_t>(128 * 257)));
    }
    __m512i times(__m512i nibbles) const { return _mm512_add_epi16(_mm512_mullo_epi16(nibbles, factor), offset); }
    __m512i low(__m512i packed) const { return times(_mm512_and_si512(packed, _mm512_set1_epi8(15))); }
    __m512i high(__m512i packed) const { return low(_mm512_srli_epi16(packed, 4)); }
  };

  // A tile of int4 blocks as int8 blocks.
  static void decode(const uint8_t* block, int num_groups, uint8_t* out) {
    for (int g = 0; g < num_groups; g++, block += kInt4BlockBytes) {
      for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++, out += 8 * kVectorBytes) {
        const Multipliers multipliers(block, subgroup);
        for (int v = 0; v < 4; v++) {
          const __m512i packed = _mm512_loadu_si512(block + kSubgroupBytes * subgroup + kVectorBytes * v);
          _mm512_store_si512(out + kVectorBytes * v, multipliers.low(packed));
          _mm512_store_si512(out + kVectorBytes * (v + 4), multipliers.high(packed));
        }
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(out), scale_bytes<Encoding::kInt4>(block));
      out += 2 * kScaleBytes;
    }
  }

  [[gnu::always_inline]] static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  template <Encoding encoding>
  static __m256i scale_bytes(const uint8_t* block) {
    constexpr int kAt = encoding == Encoding::kInt4 ? kInt4ScalesAt : kInt8ScalesAt;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + kAt));
  }

  static void write(float* out, __m512 value, Store store) {
    _mm512_storeu_ps(out, store == Store::kSet ? value : _mm512_add_ps(_mm512_loadu_ps(out), value));
  }

  template <Encoding encoding, int num_rows>
  [[gnu::always_inline]] static void run(const Piece& p) {
    if constexpr (encoding == Encoding::kLowRank) return run_low_rank<num_rows>(p);
    constexpr int kBlockBytes = encoding == Encoding::kInt4 ? kInt4BlockBytes : kInt8BlockBytes;
    // A row alone has several sums, so that its products need not wait for one another.
    constexpr int kParts = num_rows <= 2 ? 4 : 1;
    __m512 total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = _mm512_setzero_ps();
    const uint8_t *block = p.tile, *records = p.records, *next = p.next;
    for (int g = 0; g < p.num_groups; g++, block += kBlockBytes, records += p.group_stride) {
      __m512i dots[num_rows][kParts];
      for (int r = 0; r < num_rows; r++) {
        dots[r][0] = _mm512_set1_epi32(offset_in(records + r * kRecordBytes, kGroupInputs));
        for (int part = 1; part < kParts; part++) dots[r][part] = _mm512_setzero_si512();
      }
      const auto add = [&](int vector, __m512i weights) __attribute__((always_inline)) {
        for (int r = 0; r < num_rows; r++) {
          __m512i& sum = dots[r][vector % kParts];
          sum = _mm512_dpbusd_epi32(sum, weights, broadcast(records + r * kRecordBytes + kLaneInputs * vector));
        }
      };
      if constexpr (encoding == Encoding::kInt4) {
        prefetch(next + kMultipliersAt);
        for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
          const Multipliers multipliers(block, subgroup);
#pragma GCC unroll 4
          for (int v = 0; v < 4; v++) {
            const __m512i packed = _mm512_loadu_si512(block + kSubgroupBytes * subgroup + kVectorBytes * v);
            prefetch(next + kSubgroupBytes * subgroup + kVectorBytes * v);
            add(8 * subgroup + v, multipliers.low(packed));
            add(8 * subgroup + v + 4, multipliers.high(packed));
          }
        }
      } else {
        for (int part = 0; part < kGroupSubgroups; part++) {
          for (int line = part; line < p.next_lines_per_group; line += kGroupSubgroups) prefetch(next + kVectorBytes * line);
#pragma GCC unroll 8
          for (int v = 0; v < 8; v++) add(8 * part + v, _mm512_loadu_si512(block + kVectorBytes * (8 * part + v)));
        }
      }
      next += encoding == Encoding::kInt4 ? kBlockBytes : kVectorBytes * p.next_lines_per_group;
      const __m512 weight_scale = _mm512_cvtph_ps(scale_bytes<encoding>(block));
      for (int r = 0; r < num_rows; r++) {
        for (int part = 1; part < kParts; part++) dots[r][0] = _mm512_add_epi32(dots[r][0], dots[r][part]);
        const __m512 row_scale = _mm512_set1_ps(scale_in(records + r * kRecordBytes, kGroupInputs));
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][0]), _mm512_mul_ps(weight_scale, row_scale), total[r]);
      }
    }
    for (int r = 0; r < num_rows; r++) write(p.out + r * p.out_stride, total[r], p.store);
  }

  template <int num_rows>
  static void run_low_rank(const Piece& p) {
    const size_t group_inputs = p.record_bytes - kRecordTailBytes;
    const __m512 weight_scale = load_half(reinterpret_cast<const uint16_t*>(p.tile + kVectorBytes * p.num_vectors));
    __m512i dots[num_rows];
    for (int r = 0; r < num_rows; r++) dots[r] = _mm512_set1_epi32(offset_in(p.records + r * p.record_bytes, group_inputs));
    for (int v = 0; v < p.num_vectors; v++) {
      prefetch(p.next + kVectorBytes * v);
      const __m512i weights = _mm512_loadu_si512(p.tile + kVectorBytes * v);
      for (int r = 0; r < num_rows; r++) {
        dots[r] = _mm512_dpbusd_epi32(dots[r], weights, broadcast(p.records + r * p.record_bytes + kLaneInputs * v));
      }
    }
    for (int r = 0; r < num_rows; r++) {
      const __m512 row_scale = _mm512_set1_ps(scale_in(p.records + r * p.record_bytes, group_inputs));
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r]), _mm512_mul_ps(weight_scale, row_scale));
      write(p.out + r * p.out_stride, product, p.store);
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
