// Element types and the functions that compilers don't vectorise by themselves.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float x) { return x; }

inline void narrow(float x, bfloat16& out) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

inline void narrow(float x, float& out) { out = x; }

// e^x to float32's precision, by a polynomial over half an octave (the coefficients are Cephes' expf's). Unlike
// std::exp it can be vectorised in a loop without a library of vector functions.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float octaves = std::rint(x * 1.44269504f);
  const float r = (x - octaves * 0.693359375f) + octaves * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(octaves) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// tanh(x) to float32's precision, by Cephes' tanhf; it can be vectorised like `exponential`.
inline float hyperbolic_tangent(float x) {
  const float z = x * x;
  float y = -5.70498872745e-3f;
  y = y * z + 2.06390887954e-2f;
  y = y * z - 5.37397155531e-2f;
  y = y * z + 1.33314422036e-1f;
  y = y * z - 3.33332819422e-1f;
  const float near = y * z * x + x;
  const float far = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
  return x > -0.625f && x < 0.625f ? near : far;
}

}  // namespace
