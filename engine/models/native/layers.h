// What lies between a decoder's matrix products: norms, rotation, the gate.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace {

constexpr int kMaxHeadDim = 512;

template <typename T>
float inverse_length(const T* x, int64_t size, float eps) {
  float squares = 0.0f;
  for (int64_t i = 0; i < size; ++i) squares += widen(x[i]) * widen(x[i]);
  return 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
}

// One head of a query or key: normalised if there is a weight, then its first `size` dimensions rotated.
template <typename T>
void turn(const T* x, const T* weight, const T* cos, const T* signed_sin, int head_dim, int size, float eps,
          T* out) {
  alignas(64) float turned[kMaxHeadDim];
  const float scale = weight ? inverse_length(x, head_dim, eps) : 1.0f;
  for (int d = 0; d < head_dim; ++d) turned[d] = widen(x[d]) * scale;
  if (weight)
    for (int d = 0; d < head_dim; ++d) turned[d] *= widen(weight[d]);
  const int half = size / 2;
  for (int d = 0; d < half; ++d)
    narrow(turned[d] * widen(cos[d]) + turned[d + half] * widen(signed_sin[d]), out[d]);
  for (int d = half; d < size; ++d)
    narrow(turned[d] * widen(cos[d]) + turned[d - half] * widen(signed_sin[d]), out[d]);
  for (int d = size; d < head_dim; ++d) narrow(turned[d], out[d]);
}

// heads [num_rows, num_heads + 2 * kv_heads, head_dim]: queries are rotated in place, keys are rotated and stored
// in the cache, values are stored in the cache.
template <typename T>
void rotate_and_store(T* heads, const T* weights, const T* cos, const T* signed_sin, const int64_t* slot_of_row,
                      T* keys, T* values, int64_t num_rows, int num_heads, int kv_heads, int head_dim,
                      int size, int64_t slots, float eps, int num_threads) {
  const int per_row = num_heads + 2 * kv_heads;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows > 1)
  for (int64_t item = 0; item < num_rows * per_row; ++item) {
    const int64_t row = item / per_row;
    const int head = static_cast<int>(item % per_row);
    T* x = heads + item * head_dim;
    if (head < num_heads + kv_heads) {
      T* out = head < num_heads ? x : keys + ((head - num_heads) * slots + slot_of_row[row]) * head_dim;
      turn(x, weights ? weights + head * head_dim : nullptr, cos + row * size, signed_sin + row * size, head_dim,
           size, eps, out);
    } else {
      T* out = values + ((head - num_heads - kv_heads) * slots + slot_of_row[row]) * head_dim;
      std::memcpy(out, x, sizeof(T) * head_dim);
    }
  }
}

// residual += delta if there is one; out = residual, normalised and scaled. All [num_rows, size].
template <typename T>
void add_and_normalise(T* residual, const T* delta, const T* weight, int64_t num_rows, int64_t size, float eps,
                       int num_threads, T* out) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows > 4)
  for (int64_t row = 0; row < num_rows; ++row) {
    T* x = residual + row * size;
    if (delta)
      for (int64_t i = 0; i < size; ++i) narrow(widen(x[i]) + widen(delta[row * size + i]), x[i]);
    const float scale = inverse_length(x, size, eps);
    for (int64_t i = 0; i < size; ++i) narrow(widen(x[i]) * scale * widen(weight[i]), out[row * size + i]);
  }
}

inline float silu(float x) { return x / (1.0f + exponential(-x)); }

inline float gelu_tanh(float x) {  // x / 2 * (1 + tanh(y)) without the difference of two near numbers
  return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x)));
}

inline float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.7071067812f)); }

template <typename T, float (*activate)(float)>
void multiply_activated(const T* gate_up, int64_t num_rows, int64_t size, int num_threads, T* out) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows > 2)
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* gate = gate_up + row * 2 * size;
    const T* up = gate + size;
    for (int64_t i = 0; i < size; ++i) narrow(activate(widen(gate[i])) * widen(up[i]), out[row * size + i]);
  }
}

// gate_up [num_rows, 2 * size] → activation(first half) * second half, [num_rows, size].
template <typename T>
void activate_and_multiply(const T* gate_up, int64_t num_rows, int64_t size, int activation, int num_threads,
                           T* out) {
  const auto multiply = activation == 0   ? multiply_activated<T, silu>
                        : activation == 1 ? multiply_activated<T, gelu_tanh>
                                          : multiply_activated<T, gelu>;
  multiply(gate_up, num_rows, size, num_threads, out);
}

}  // namespace
