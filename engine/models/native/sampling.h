// What a sampler does with logits: forbid tokens, draw one.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "numbers.h"

namespace {

// Minus infinity where a bit is not set: bits [num_rows, num_words] for the rows in `rows` of logits
// [.., vocab_size]; the lowest bit of the first word is token 0's.
template <typename T>
void forbid_tokens(T* logits, const int64_t* rows, const uint32_t* bits, int64_t num_rows, int64_t num_words,
                   int64_t vocab_size, int num_threads) {
  T never;
  narrow(-std::numeric_limits<float>::infinity(), never);
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows > 1)
  for (int64_t index = 0; index < num_rows; ++index) {
    T* row = logits + rows[index] * vocab_size;
    for (int64_t word = 0; word * 32 < vocab_size; ++word) {
      const uint32_t allowed = word < num_words ? bits[index * num_words + word] : 0u;
      if (allowed == ~0u) continue;
      T* part = row + word * 32;
      const int64_t size = std::min<int64_t>(32, vocab_size - word * 32);
      for (int64_t i = 0; i < size; ++i) part[i] = allowed >> i & 1u ? part[i] : never;
    }
  }
}

constexpr int kBlock = 512;       // tokens whose weights are summed together
constexpr float kLeast = -87.0f;  // below it, e^x is treated as 0

inline float weight_of(float logit, float peak, float temperature, float min_p) {
  const float x = (logit - peak) / temperature;
  const float weight = exponential(x);
  return x < kLeast || weight < min_p ? 0.0f : weight;
}

template <typename T>
float highest_of(const T* logits, int64_t size) {
  constexpr int kLanes = 16;  // a single maximum would not be vectorised
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], widen(logits[i + lane]));
  for (; i < size; ++i) lanes[0] = std::max(lanes[0], widen(logits[i]));
  return *std::max_element(lanes, lanes + kLanes);
}

template <typename T>
float weight_of_block(const T* logits, int64_t size, float peak, float temperature, float min_p) {
  float sum = 0.0f;
  for (int64_t i = 0; i < size; ++i) sum += weight_of(widen(logits[i]), peak, temperature, min_p);
  return sum;
}

// The first index at which the running sum of `weights` exceeds `threshold`, or else the last that adds to it;
// `threshold` is reduced to the remainder there.
template <typename Weight>
int64_t pick(const Weight* weights, int64_t size, double& threshold) {
  double before = 0.0, at_last = 0.0;
  int64_t last = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    at_last = before;
    before += weights[i];
    if (before > threshold) break;
  }
  threshold -= at_last;
  return last;
}

// One token per row in `rows`, by weights e^((logit - peak) / temperature), 0 below min_p: the token at which the
// sum of weights in token order passes `uniform` of the total. First finds a block, then the token in it.
template <typename T>
void draw_tokens(const T* logits, const int64_t* rows, const float* temperatures, const float* min_ps,
                 const double* uniforms, int64_t num_rows, int64_t vocab_size, int num_threads, int64_t* tokens) {
#pragma omp parallel num_threads(num_threads) if (num_rows > 1)
  {
    const int64_t num_blocks = (vocab_size + kBlock - 1) / kBlock;
    std::vector<float> peaks(num_blocks);
    std::vector<double> sums(num_blocks);
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < num_rows; ++index) {
      const T* row = logits + rows[index] * vocab_size;
      const float temperature = temperatures[index], min_p = min_ps[index];
      const auto size_of = [&](int64_t block) { return std::min<int64_t>(kBlock, vocab_size - block * kBlock); };
      for (int64_t block = 0; block < num_blocks; ++block)
        peaks[block] = highest_of(row + block * kBlock, size_of(block));
      const float peak = *std::max_element(peaks.begin(), peaks.end());
      double total = 0.0;
      for (int64_t block = 0; block < num_blocks; ++block) {
        const bool is_heard = (peaks[block] - peak) / temperature >= kLeast;
        sums[block] =
            is_heard ? weight_of_block(row + block * kBlock, size_of(block), peak, temperature, min_p) : 0.0;
        total += sums[block];
      }
      double threshold = uniforms[index] * total;
      const int64_t first = pick(sums.data(), num_blocks, threshold) * kBlock;
      float weights[kBlock];
      const int64_t size = size_of(first / kBlock);
      for (int64_t i = 0; i < size; ++i) weights[i] = weight_of(widen(row[first + i]), peak, temperature, min_p);
      tokens[index] = first + pick(weights, size, threshold);
    }
  }
}

}  // namespace
