// AVX-512 with VNNI: one vector of a block is one register, and `vpdpbusd` multiplies unsigned weights by signed
// activations, four inputs to a lane.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx512.h"

namespace socle {
namespace {

struct TileProduct {
  static constexpr int kMaxRows = 8;  // as many sums hide the latency of a product; 12 were no faster
  static constexpr int kRowsWorthDecoding = 9;  // more than one block, which decodes for itself
  static constexpr bool kHasSubgroupOffsets = true;
  static constexpr size_t kDecodedBlockBytes = kInt8BlockBytes;

  static int32_t subgroup_offset(int sum, Vec) { return -8 * sum; }

  static __m512i broadcast(const uint8_t* four) {
    int32_t lane;
    __builtin_memcpy(&lane, four, sizeof lane);
    return _mm512_set1_epi32(lane);
  }

  // Brings the nibbles of a subgroup to (q - 8) * multiplier + 128. Two bytes are multiplied as one number: what the
  // lower one carries or borrows goes out again when 128 - 8 * multiplier has been added to both.
  struct Multipliers {
    __m512i one;  // for each output row, in 32 bits
    __m512i factor, offset;

    Multipliers(const uint8_t* block, int subgroup) {
      const __m512i all = _mm512_loadu_si512(block);
      one = _mm512_srai_epi32(_mm512_slli_epi32(all, 24 - 8 * subgroup), 24);
      factor = _mm512_mask_blend_epi16(0xAAAAAAAA, one, _mm512_slli_epi32(one, 16));
      offset = _mm512_add_epi16(_mm512_mullo_epi16(factor, _mm512_set1_epi16(-8 * 257)),
                                _mm512_set1_epi16(static_cast<int16_t>(128 * 257)));
    }
    __m512i times(__m512i nibbles) const { return _mm512_add_epi16(_mm512_mullo_epi16(nibbles, factor), offset); }
    __m512i low(__m512i packed) const { return times(low_nibbles(packed)); }
    __m512i high(__m512i packed) const { return times(high_nibbles(packed)); }
  };
  static __m512i low_nibbles(__m512i packed) { return _mm512_and_si512(packed, _mm512_set1_epi8(15)); }
  static __m512i high_nibbles(__m512i packed) { return low_nibbles(_mm512_srli_epi16(packed, 4)); }

  // To int8 blocks.
  static void decode(const uint8_t* block, int num_groups, uint8_t* out) {
    for (int g = 0; g < num_groups; g++, block += kInt4BlockBytes) {
      for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++, out += 8 * kVectorBytes) {
        const Multipliers multipliers(block, subgroup);
        for (int v = 0; v < 4; v++) {
          const __m512i packed = _mm512_loadu_si512(block + kInt4VectorsAt + kSubgroupBytes * subgroup + kVectorBytes * v);
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
    __m512 total[num_rows];
    for (int r = 0; r < num_rows; r++) total[r] = _mm512_setzero_ps();
    const uint8_t *block = p.tile, *records = p.records, *next = p.next;
    for (int g = 0; g < p.num_groups; g++, block += kBlockBytes, records += p.group_stride) {
      __m512i dots[num_rows];
      if constexpr (encoding == Encoding::kInt4) {
        dot_int4<num_rows>(block, records, next, dots);
        next += kInt4BlockBytes;
      } else {
        dot_int8<num_rows>(block, records, next, p.next_lines_per_group, dots);
        next += kVectorBytes * p.next_lines_per_group;
      }
      const __m512 weight_scale = _mm512_cvtph_ps(scale_bytes<encoding>(block));
      for (int r = 0; r < num_rows; r++) {
        const __m512 row_scale = _mm512_set1_ps(scale_in(records + r * kRecordBytes, kGroupInputs));
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), _mm512_mul_ps(weight_scale, row_scale), total[r]);
      }
    }
    for (int r = 0; r < num_rows; r++) write(p.out + r * p.out_stride, total[r], p.store);
  }

  // One or two rows are multiplied with nibbles as they are, and each sum of a subgroup with its multiplier; from three rows
  // on it is less work to decode the weights. Both give the same integers.
  template <int num_rows>
  [[gnu::always_inline]] static void dot_int4(const uint8_t* block, const uint8_t* records, const uint8_t* next,
                                              __m512i* dots) {
    constexpr bool kDecodes = num_rows > 2;
    for (int r = 0; r < num_rows; r++) {
      dots[r] = kDecodes ? _mm512_set1_epi32(offset_in(records + r * kRecordBytes, kGroupInputs)) : _mm512_setzero_si512();
    }
    // Ascending, as the hardware's own fetching follows them. A row or two pass faster, so theirs go further ahead at once.
    for (int line = 0; num_rows <= 2 && line < kInt4BlockBytes; line += kVectorBytes) prefetch(next + kInt4BlockBytes + line);
    for (int line = 0; num_rows > 2 && line < kInt4VectorsAt; line += kVectorBytes) prefetch(next + line);
#pragma GCC unroll 4
    for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
      const Multipliers multipliers(block, subgroup);
      __m512i weights[8];
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) {
        const int at = kInt4VectorsAt + kSubgroupBytes * subgroup + kVectorBytes * v;
        const __m512i packed = _mm512_loadu_si512(block + at);
        if (num_rows > 2) prefetch(next + at);
        weights[v] = kDecodes ? multipliers.low(packed) : low_nibbles(packed);
        weights[v + 4] = kDecodes ? multipliers.high(packed) : high_nibbles(packed);
      }
      for (int r = 0; r < num_rows; r++) {
        const uint8_t* record = records + r * kRecordBytes;
        const size_t offset = offsetof(RecordTail, subgroup_offsets) + sizeof(int32_t) * subgroup;
        __m512i sum = kDecodes ? dots[r] : broadcast(record + kGroupInputs + offset);
        for (int v = 0; v < 8; v++) {
          sum = _mm512_dpbusd_epi32(sum, weights[v], broadcast(record + kSubgroupInputs * subgroup + kLaneInputs * v));
        }
        dots[r] = kDecodes ? sum : _mm512_add_epi32(dots[r], _mm512_mullo_epi32(sum, multipliers.one));
      }
    }
  }

  // A row alone has several sums, so that its products need not wait for one another.
  template <int num_rows>
  [[gnu::always_inline]] static void dot_int8(const uint8_t* block, const uint8_t* records, const uint8_t* next,
                                              int num_next_lines, __m512i* dots) {
    constexpr int kParts = num_rows <= 2 ? 4 : 1;
    __m512i part[num_rows][kParts];
    for (int r = 0; r < num_rows; r++) {
      part[r][0] = _mm512_set1_epi32(offset_in(records + r * kRecordBytes, kGroupInputs));
      for (int i = 1; i < kParts; i++) part[r][i] = _mm512_setzero_si512();
    }
    for (int quarter = 0; quarter < 4; quarter++) {
      for (int line = quarter; line < num_next_lines; line += 4) prefetch(next + kVectorBytes * line);
#pragma GCC unroll 8
      for (int i = 0; i < kInt8Vectors / 4; i++) {
        const int v = kInt8Vectors / 4 * quarter + i;
        const __m512i weights = _mm512_loadu_si512(block + kVectorBytes * v);
        for (int r = 0; r < num_rows; r++) {
          const __m512i x = broadcast(records + r * kRecordBytes + kLaneInputs * v);
          part[r][i % kParts] = _mm512_dpbusd_epi32(part[r][i % kParts], weights, x);
        }
      }
    }
    for (int r = 0; r < num_rows; r++) {
      for (int i = 1; i < kParts; i++) part[r][0] = _mm512_add_epi32(part[r][0], part[r][i]);
      dots[r] = part[r][0];
    }
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

const Kernels kAvx512VnniKernels = this_set(
    "avx512vnni",
    [] {
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    },
    dot_products);

}  // namespace socle
