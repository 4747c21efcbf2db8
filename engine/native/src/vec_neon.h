// Sixteen floats in four Neon registers. See vec_portable.h for what each operation means.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace socle {
namespace {

struct Vec {
  float32x4_t quarter[4];
};

template <class Op>
inline Vec each(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}

inline Vec all(float x) {
  const float32x4_t four = vdupq_n_f32(x);
  return {{four, four, four, four}};
}
constexpr int kVecSums = 6;  // that registers hold beside what is added to them

inline Vec zeros() { return all(0.0f); }
inline Vec load(const float* p) {
  return each([p](int i) { return vld1q_f32(p + 4 * i); });
}
inline Vec load_part(const float* p, int n) {
  float lanes[16] = {};
  std::memcpy(lanes, p, sizeof(float) * (n & 15));
  return load(lanes);
}
inline void store(float* p, Vec x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.quarter[i]);
}
inline void store_part(float* p, Vec x, int n) {
  float lanes[16];
  store(lanes, x);
  std::memcpy(p, lanes, sizeof(float) * (n & 15));
}
inline Vec load_half(const uint16_t* p) {
  return each([p](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline void store_half(uint16_t* p, Vec x) {
  for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.quarter[i])));
}
inline Vec load_int8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline void store_int8(int8_t* p, Vec x) {
  int32x4_t rounded[4];
  for (int i = 0; i < 4; i++) rounded[i] = vcvtnq_s32_f32(x.quarter[i]);
  const int16x8_t low = vcombine_s16(vqmovn_s32(rounded[0]), vqmovn_s32(rounded[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(rounded[2]), vqmovn_s32(rounded[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return vaddq_f32(a.quarter[i], b.quarter[i]); });
}
inline Vec sub(Vec a, Vec b) {
  return each([&](int i) { return vsubq_f32(a.quarter[i], b.quarter[i]); });
}
inline Vec mul(Vec a, Vec b) {
  return each([&](int i) { return vmulq_f32(a.quarter[i], b.quarter[i]); });
}
inline Vec div(Vec a, Vec b) {
  return each([&](int i) { return vdivq_f32(a.quarter[i], b.quarter[i]); });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return vfmaq_f32(c.quarter[i], a.quarter[i], b.quarter[i]); });
}
// The second where one is not a number, as on other processors: `vmaxq_f32` would keep what is not a number.
inline float32x4_t larger_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t smaller_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return larger_of(a.quarter[i], b.quarter[i]); });
}
inline Vec min(Vec a, Vec b) {
  return each([&](int i) { return smaller_of(a.quarter[i], b.quarter[i]); });
}
inline Vec larger_magnitude(Vec a, Vec b) {
  return each([&](int i) {
    const uint32x4_t magnitude = vandq_u32(vreinterpretq_u32_f32(b.quarter[i]), vdupq_n_u32(0x7FFFFFFF));
    return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(a.quarter[i]), magnitude));
  });
}
inline Vec round(Vec a) {
  return each([&](int i) { return vrndnq_f32(a.quarter[i]); });
}
inline Vec times_power_of_two(Vec x, Vec exponent) {
  return each([&](int i) {
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(exponent.quarter[i]), vdupq_n_s32(127));
    return vmulq_f32(x.quarter[i], vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
  });
}
inline Vec keep_lanes(Vec x, int begin, int end, float other) {
  const int32_t first[4] = {0, 1, 2, 3};
  return each([&](int i) {
    const int32x4_t lane = vaddq_s32(vld1q_s32(first), vdupq_n_s32(4 * i));
    const uint32x4_t kept = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
    return vbslq_f32(kept, x.quarter[i], vdupq_n_f32(other));
  });
}

inline float sum(Vec x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.quarter[0], x.quarter[2]), vaddq_f32(x.quarter[1], x.quarter[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(Vec x) {
  const float32x4_t four = larger_of(larger_of(x.quarter[0], x.quarter[2]), larger_of(x.quarter[1], x.quarter[3]));
  const float32x4_t two = larger_of(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(larger_of(two, vextq_f32(two, two, 1)), 0);
}
inline float largest_magnitude(Vec x) {
  const uint32x4_t low = vmaxq_u32(vreinterpretq_u32_f32(x.quarter[0]), vreinterpretq_u32_f32(x.quarter[1]));
  const uint32x4_t high = vmaxq_u32(vreinterpretq_u32_f32(x.quarter[2]), vreinterpretq_u32_f32(x.quarter[3]));
  const uint32_t bits = vmaxvq_u32(vmaxq_u32(low, high));
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

}  // namespace
}  // namespace socle
