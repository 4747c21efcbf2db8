// AVX2 with FMA: a vector of a block is two registers, one for each half of the tile's output rows.
//
// `vpmaddubsw` multiplies unsigned weights by signed activations and adds pairs, in 16 bits. A subgroup of 4-bit
// weights stays within 16 bits; its sum is widened and multiplied by the subgroup's multiplier in one instruction.
#include <immintrin.h>

#include "kernels.h"
#include "vec_avx2.h"

namespace socle {
namespace {

constexpr int kHalves = 2;
constexpr int kHalfRows = kTileRows / kHalves;
constexpr int kHalfBytes = kVectorBytes / kHalves;
constexpr int kSubgroupVectors = kSubgroupInputs / kLaneInputs;

inline __m256i bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void set_bytes(uint8_t* p, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), value); }
inline __m256i broadcast(const uint8_t* four) {
  int32_t lane;
  __builtin_memcpy(&lane, four, sizeof lane);
  return _mm256_set1_epi32(lane);
}
inline __m256i low_nibbles(__m256i packed) { return _mm256_and_si256(packed, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i packed) { return low_nibbles(_mm256_srli_epi16(packed, 4)); }

// A block of 4-bit weights as it lies in the file.
struct PackedBlock {
  static constexpr int kBytes = kInt4BlockBytes;
  static constexpr int kScalesAt = kInt4ScalesAt;

  // The subgroup's multipliers, in both 16-bit halves of each output row's lane.
  static __m256i factors(const uint8_t* block, int subgroup, int half) {
    const __m256i all = bytes(block + kHalfBytes * half);
    const __m256i one = _mm256_srai_epi32(_mm256_slli_epi32(all, 24 - 8 * subgroup), 24);
    return _mm256_blend_epi16(one, _mm256_slli_epi32(one, 16), 0xAA);
  }
  // Half of vector v, or of vector v + 4, of a subgroup.
  static __m256i weights(const uint8_t* block, int subgroup, int v, bool is_high, int half) {
    const __m256i packed =
        bytes(block + kInt4VectorsAt + kSubgroupBytes * subgroup + kVectorBytes * v + kHalfBytes * half);
    return is_high ? high_nibbles(packed) : low_nibbles(packed);
  }
};

// The same for many rows: factors, scales, and a byte for each weight. 15 % faster from 32 rows on, 5 % at 16.
struct DecodedBlock {
  static constexpr int kScalesAt = kVectorBytes * kGroupSubgroups;
  static constexpr int kVectorsAt = kScalesAt + kVectorBytes;
  static constexpr int kBytes = kVectorsAt + kVectorBytes * kInt8Vectors;

  static __m256i factors(const uint8_t* block, int subgroup, int half) {
    return bytes(block + kVectorBytes * subgroup + kHalfBytes * half);
  }
  static int weights_at(int subgroup, int v, bool is_high, int half) {
    const int vector = kSubgroupVectors * subgroup + v + (is_high ? kSubgroupVectors / 2 : 0);
    return kVectorsAt + kVectorBytes * vector + kHalfBytes * half;
  }
  static __m256i weights(const uint8_t* block, int subgroup, int v, bool is_high, int half) {
    return bytes(block + weights_at(subgroup, v, is_high, half));
  }
  static void decode(const uint8_t* block, uint8_t* out) {
    for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
      for (int half = 0; half < kHalves; half++) {
        set_bytes(out + kVectorBytes * subgroup + kHalfBytes * half, PackedBlock::factors(block, subgroup, half));
        for (int i = 0; i < kSubgroupVectors; i++) {
          set_bytes(out + weights_at(subgroup, i / 2, i % 2, half),
                    PackedBlock::weights(block, subgroup, i / 2, i % 2, half));
        }
      }
    }
    __builtin_memcpy(out + kScalesAt, block + kInt4ScalesAt, kScaleBytes);
  }
};

struct TileProduct {
  static constexpr int kMaxRows = 4;  // sums of two halves take 8 of the 16 registers; 5 and 6 rows were no faster
  static constexpr int kRowsWorthDecoding = 9;
  static constexpr size_t kDecodedBlockBytes = DecodedBlock::kBytes;
  static constexpr bool kHasSubgroupOffsets = true;

  // -8 times the inputs that the lower 16 bits of a lane add up, and those that the upper ones do. With these to begin
  // with both stay within 16 bits: at most 16 inputs * 8 * 127.
  static int32_t subgroup_offset(int, Vec sums) {
    const __m256 eight = _mm256_add_ps(sums.low, sums.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128i pairs = _mm_cvtps_epi32(_mm_hadd_ps(four, four));
    const __m128i offsets = _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(pairs, 3));
    const auto lower = static_cast<uint32_t>(_mm_cvtsi128_si32(offsets)),
               upper = static_cast<uint32_t>(_mm_extract_epi32(offsets, 1));
    return static_cast<int32_t>((lower & 0xFFFF) | upper << 16);
  }

  static void decode(const uint8_t* block, int num_groups, uint8_t* out) {
    for (int g = 0; g < num_groups; g++)
      DecodedBlock::decode(block + kInt4BlockBytes * g, out + kDecodedBlockBytes * g);
  }

  static __m256 half_scales(const uint8_t* scales, int half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + kScaleBytes / kHalves * half)));
  }
  static void write(float* out, __m256 value, Store store) {
    _mm256_storeu_ps(out, store == Store::kSet ? value : _mm256_add_ps(_mm256_loadu_ps(out), value));
  }
  static void prefetch(const uint8_t* lines, int num_lines) {
    for (int i = 0; i < num_lines; i++)
      _mm_prefetch(reinterpret_cast<const char*>(lines + kVectorBytes * i), _MM_HINT_T0);
  }

  template <Encoding encoding, int num_rows>
  [[gnu::always_inline]] static void run(const Piece& p) {
    if constexpr (encoding == Encoding::kInt4)
      return run_groups<PackedBlock::kBytes, PackedBlock::kScalesAt, num_rows>(p, dot_int4<PackedBlock, num_rows>);
    if constexpr (encoding == Encoding::kDecoded)
      return run_groups<DecodedBlock::kBytes, DecodedBlock::kScalesAt, num_rows>(p, dot_int4<DecodedBlock, num_rows>);
    if constexpr (encoding == Encoding::kInt8)
      return run_groups<kInt8BlockBytes, kInt8ScalesAt, num_rows>(p, dot_int8_group<num_rows>);
    if constexpr (encoding == Encoding::kLowRank) return run_low_rank<num_rows>(p);
  }

  // dot(block, records, dots) sums a group's products in integers, [num_rows][kHalves].
  template <int block_bytes, int scales_at, int num_rows, class Dot>
  [[gnu::always_inline]] static void run_groups(const Piece& p, Dot&& dot) {
    __m256 total[num_rows][kHalves];
    for (auto& row : total) row[0] = row[1] = _mm256_setzero_ps();
    const uint8_t *block = p.tile, *records = p.records, *next = p.next;
    for (int g = 0; g < p.num_groups; g++, block += block_bytes, records += p.group_stride) {
      prefetch(next, p.next_lines_per_group);
      next += kVectorBytes * p.next_lines_per_group;
      __m256i dots[num_rows][kHalves];
      dot(block, records, dots);
      for (int half = 0; half < kHalves; half++) {
        const __m256 weight_scale = half_scales(block + scales_at, half);
        for (int r = 0; r < num_rows; r++) {
          const __m256 row_scale = _mm256_set1_ps(scale_in(records + r * kRecordBytes, kGroupInputs));
          total[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][half]), _mm256_mul_ps(weight_scale, row_scale),
                                           total[r][half]);
        }
      }
    }
    for (int r = 0; r < num_rows; r++) {
      for (int half = 0; half < kHalves; half++)
        write(p.out + r * p.out_stride + kHalfRows * half, total[r][half], p.store);
    }
  }

  template <class Block, int num_rows>
  [[gnu::always_inline]] static void dot_int4(const uint8_t* block, const uint8_t* records, __m256i (*dots)[kHalves]) {
    for (int r = 0; r < num_rows; r++) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
    for (int subgroup = 0; subgroup < kGroupSubgroups; subgroup++) {
      const uint8_t* offsets =
          records + kGroupInputs + offsetof(RecordTail, subgroup_offsets) + sizeof(int32_t) * subgroup;
      __m256i pairs[num_rows][kHalves];
      for (int r = 0; r < num_rows; r++) pairs[r][0] = pairs[r][1] = broadcast(offsets + r * kRecordBytes);
#pragma GCC unroll 8
      for (int i = 0; i < kSubgroupVectors; i++) {  // both halves of a byte while it is at hand
        const int v = i / 2;
        const bool is_high = i % 2;
        const __m256i left = Block::weights(block, subgroup, v, is_high, 0),
                      right = Block::weights(block, subgroup, v, is_high, 1);
        const uint8_t* x =
            records + kSubgroupInputs * subgroup + kLaneInputs * (v + (is_high ? kSubgroupVectors / 2 : 0));
        for (int r = 0; r < num_rows; r++) {
          const __m256i four = broadcast(x + r * kRecordBytes);
          pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(left, four));
          pairs[r][1] = _mm256_add_epi16(pairs[r][1], _mm256_maddubs_epi16(right, four));
          // GCC would put off the additions, run out of registers and take 1.5 times as long.
          asm volatile("" : "+x"(pairs[r][0]), "+x"(pairs[r][1]));
        }
      }
      for (int half = 0; half < kHalves; half++) {
        const __m256i factors = Block::factors(block, subgroup, half);
        for (int r = 0; r < num_rows; r++)
          dots[r][half] = _mm256_add_epi32(dots[r][half], _mm256_madd_epi16(pairs[r][half], factors));
      }
    }
  }

  template <int num_rows>
  [[gnu::always_inline]] static void dot_int8_group(const uint8_t* block, const uint8_t* records,
                                                    __m256i (*dots)[kHalves]) {
    dot_int8<num_rows>(block, kInt8Vectors, records, kRecordBytes, dots);
  }

  // Signed bytes: the sign moves to the activations, and a pair is at most 2 * 128 * 127 = 32,512.
  template <int num_rows>
  [[gnu::always_inline]] static void dot_int8(const uint8_t* vectors, int num_vectors, const uint8_t* records,
                                              size_t record_bytes, __m256i (*dots)[kHalves]) {
    for (int r = 0; r < num_rows; r++) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
    for (int v = 0; v < num_vectors; v++, vectors += kVectorBytes, records += kLaneInputs) {
      __m256i weights[kHalves], magnitudes[kHalves];
      for (int half = 0; half < kHalves; half++) {
        weights[half] = _mm256_xor_si256(bytes(vectors + kHalfBytes * half), _mm256_set1_epi8(-128));
        magnitudes[half] = _mm256_abs_epi8(weights[half]);
      }
      for (int r = 0; r < num_rows; r++) {
        const __m256i four = broadcast(records + r * record_bytes);
        for (int half = 0; half < kHalves; half++) {
          const __m256i pairs = _mm256_maddubs_epi16(magnitudes[half], _mm256_sign_epi8(four, weights[half]));
          dots[r][half] = _mm256_add_epi32(dots[r][half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        asm volatile("" : "+x"(dots[r][0]), "+x"(dots[r][1]));  // as above
      }
    }
  }

  template <int num_rows>
  static void run_low_rank(const Piece& p) {
    prefetch(p.next, p.num_vectors);
    __m256i dots[num_rows][kHalves];
    dot_int8<num_rows>(p.tile, p.num_vectors, p.records, p.record_bytes, dots);
    for (int half = 0; half < kHalves; half++) {
      const __m256 weight_scale = half_scales(p.tile + kVectorBytes * p.num_vectors, half);
      for (int r = 0; r < num_rows; r++) {
        const float row_scale = scale_in(p.records + r * p.record_bytes, p.record_bytes - kRecordTailBytes);
        const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(row_scale));
        write(p.out + r * p.out_stride + kHalfRows * half, _mm256_mul_ps(_mm256_cvtepi32_ps(dots[r][half]), scale),
              p.store);
      }
    }
  }
};

}  // namespace
}  // namespace socle

#include "kernels_impl.h"

namespace socle {
namespace {

// With the addition that each multiplication takes.
int64_t dot_products(int64_t rounds) {
  constexpr int kNumSums = 12;
  __m256i sums[kNumSums];
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  const __m256i weights = _mm256_set1_epi8(3);
  __m256i values = _mm256_set1_epi8(5);
  for (int64_t round = 0; round < rounds; round++) {
    asm volatile("" : "+x"(values));
    for (auto& sum : sums) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, values));
      asm volatile("" : "+x"(sum));
    }
  }
  return rounds * kNumSums * 32;
}

}  // namespace

const Kernels kAvx2Kernels = this_set(
    "avx2",
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); },
    dot_products);

}  // namespace socle
