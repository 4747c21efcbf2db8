// Sixteen floats in plain C++, and the meaning of every operation: the other files do the same in registers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace socle {
namespace {

struct Vec {
  float lane[16];
};

constexpr int kVecSums = 8;  // that it is good to form at once; on other sets those that registers hold

template <class Op>
inline Vec each(Op op) {
  Vec out;
  for (int i = 0; i < 16; i++) out.lane[i] = op(i);
  return out;
}

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// IEEE 754 half precision to single, exactly.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bits_to_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude < 0x400u) return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24f));
  return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
}
// Single precision to half, to nearest, ties to even.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {  // subnormal: let the adder round at the right bit
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13));
}

inline Vec all(float x) {
  return each([x](int) { return x; });
}
inline Vec zeros() { return all(0.0f); }
inline Vec load(const float* p) {
  return each([p](int i) { return p[i]; });
}
// The first n lanes, n below 16; the others are zero.
inline Vec load_part(const float* p, int n) {
  return each([p, n](int i) { return i < n ? p[i] : 0.0f; });
}
inline void store(float* p, Vec x) { std::memcpy(p, x.lane, sizeof x.lane); }
inline void store_part(float* p, Vec x, int n) { std::memcpy(p, x.lane, sizeof(float) * (n & 15)); }
inline Vec load_half(const uint16_t* p) {
  return each([p](int i) { return half_to_float(p[i]); });
}
inline void store_half(uint16_t* p, Vec x) {
  for (int i = 0; i < 16; i++) p[i] = float_to_half(x.lane[i]);
}
inline Vec load_int8(const int8_t* p) {
  return each([p](int i) { return static_cast<float>(p[i]); });
}
// Rounds to nearest, ties to even, for |x| <= 127.
inline void store_int8(int8_t* p, Vec x) {
  for (int i = 0; i < 16; i++) {
    const float rounded = std::nearbyint(x.lane[i]);
    p[i] = static_cast<int8_t>(rounded >= -128.0f && rounded <= 127.0f ? rounded : -128.0f);
  }
}

inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a * b + c, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// The larger of a, which is not negative, and |b|, by their bits: infinity is larger than any number, and NaN than that.
inline Vec larger_magnitude(Vec a, Vec b) {
  return each([&](int i) {
    const uint32_t first = float_to_bits(a.lane[i]), second = float_to_bits(b.lane[i]) & 0x7FFFFFFFu;
    return bits_to_float(first > second ? first : second);
  });
}
// To the nearest integer, ties to even.
inline Vec round(Vec a) {
  return each([&](int i) { return std::nearbyint(a.lane[i]); });
}
// x * 2^exponent for integral exponents from -126 to 127.
inline Vec times_power_of_two(Vec x, Vec exponent) {
  return each([&](int i) {
    return x.lane[i] * bits_to_float(static_cast<uint32_t>(static_cast<int>(exponent.lane[i]) + 127) << 23);
  });
}
// Lanes begin .. end - 1 stay, the others become `other`.
inline Vec keep_lanes(Vec x, int begin, int end, float other) {
  return each([&](int i) { return i >= begin && i < end ? x.lane[i] : other; });
}

// Folded in halves: lanes i and i + 8, then i and i + 4, ...
inline float sum(Vec x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.lane[i] += x.lane[i + half];
  return x.lane[0];
}
inline float largest(Vec x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.lane[i] = x.lane[i] > x.lane[i + half] ? x.lane[i] : x.lane[i + half];
  return x.lane[0];
}
// Of lanes that are not negative, by their bits.
inline float largest_magnitude(Vec x) {
  uint32_t top = 0;
  for (const float lane : x.lane) top = float_to_bits(lane) > top ? float_to_bits(lane) : top;
  return bits_to_float(top);
}

}  // namespace
}  // namespace socle
