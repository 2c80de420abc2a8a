// Attention: of decodes over the paged cache, and the softmax of prompts' scores.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "layers.h"
#include "numbers.h"

namespace {

constexpr int kHeadsAtOnce = 8;         // query heads that share the reading of a key
constexpr int kRowsAtOnce = 32;         // keys between two updates of the running maximum
constexpr int64_t kLeastPart = 256;     // keys that are worth a thread of their own
constexpr float kBelowScores = -1e30f;  // a running maximum before the first score

// What is done to the scores, beside the scaling.
struct Scoring {
  float scale;
  int64_t window;      // positions that a query sees, its own included; 0 = all
  float softcap;       // scores become softcap * tanh(score / softcap); 0 = they stay
  const float* sinks;  // per head, a further score that takes part in the softmax; may be null
};

template <typename T>
struct Cache {
  const T* keys;    // of one key-value head: [slots, head_dim]
  const T* values;  // likewise
  const int64_t* block_table;
  int64_t block_size;
};

struct Range {
  int64_t begin, stop;  // of positions
};

// What a part of a context adds to one head's result, with the sum's exponents relative to `highest`.
struct Part {
  float highest, total;
  float sum[kMaxHeadDim];
};

// One query per head against a range of keys with an online softmax: nothing of the range's length is stored.
// `scoring.sinks` are those of the heads. Writes the heads' outputs, or, where the range is a part of a context, their
// `parts`. D is the head's dimension if known at compile time, else 0.
template <typename T, int D>
void attend(const T* queries, int heads, const Cache<T>& cache, Range range, int head_dim,
            const Scoring& scoring, T* outputs, Part* parts) {
  constexpr int kDim = D ? D : kMaxHeadDim;
  const int dim = D ? D : head_dim;
  alignas(64) float query[kHeadsAtOnce][kDim], sum[kHeadsAtOnce][kDim], weight[kHeadsAtOnce][kRowsAtOnce];
  float highest[kHeadsAtOnce], total[kHeadsAtOnce];
  for (int h = 0; h < heads; ++h) {
    for (int d = 0; d < dim; ++d) query[h][d] = widen(queries[h * dim + d]) * scoring.scale;
    for (int d = 0; d < dim; ++d) sum[h][d] = 0.0f;
    highest[h] = scoring.sinks ? scoring.sinks[h] : kBelowScores;
    total[h] = scoring.sinks ? 1.0f : 0.0f;
  }
  for (int64_t first = range.begin, rows; first < range.stop; first += rows) {
    const int64_t within = first % cache.block_size;
    rows = std::min<int64_t>({kRowsAtOnce, cache.block_size - within, range.stop - first});
    const int64_t slot = cache.block_table[first / cache.block_size] * cache.block_size + within;
    const T* keys = cache.keys + slot * dim;
    const T* values = cache.values + slot * dim;
    for (int j = 0; j < rows; ++j)
      for (int h = 0; h < heads; ++h) {
        float dot = 0.0f;
        for (int d = 0; d < dim; ++d) dot += query[h][d] * widen(keys[j * dim + d]);
        weight[h][j] = dot;
      }
    if (scoring.softcap > 0)
      for (int h = 0; h < heads; ++h)
        for (int j = 0; j < rows; ++j)
          weight[h][j] = scoring.softcap * hyperbolic_tangent(weight[h][j] / scoring.softcap);
    for (int h = 0; h < heads; ++h) {
      float top = highest[h];
      for (int j = 0; j < rows; ++j) top = weight[h][j] > top ? weight[h][j] : top;
      if (top > highest[h]) {
        const float shrink = exponential(highest[h] - top);
        total[h] *= shrink;
        for (int d = 0; d < dim; ++d) sum[h][d] *= shrink;
        highest[h] = top;
      }
      for (int j = 0; j < rows; ++j) weight[h][j] = exponential(weight[h][j] - top);
      for (int j = 0; j < rows; ++j) total[h] += weight[h][j];
      for (int j = 0; j < rows; ++j)
        for (int d = 0; d < dim; ++d) sum[h][d] += weight[h][j] * widen(values[j * dim + d]);
    }
  }
  if (parts) {
    for (int h = 0; h < heads; ++h) {
      parts[h].highest = highest[h];
      parts[h].total = total[h];
      std::copy(sum[h], sum[h] + dim, parts[h].sum);
    }
    return;
  }
  for (int h = 0; h < heads; ++h)
    for (int d = 0; d < dim; ++d) narrow(sum[h][d] / total[h], outputs[h * dim + d]);
}

// One head's output from its parts, `stride` apart.
template <typename T>
void combine(const Part* parts, int64_t num_parts, int64_t stride, int head_dim, T* output) {
  float highest = kBelowScores, total = 0.0f;
  float sum[kMaxHeadDim] = {};
  for (int64_t i = 0; i < num_parts; ++i) highest = std::max(highest, parts[i * stride].highest);
  for (int64_t i = 0; i < num_parts; ++i) {
    const Part& part = parts[i * stride];
    const float weight = exponential(part.highest - highest);
    total += weight * part.total;
    for (int d = 0; d < head_dim; ++d) sum[d] += weight * part.sum[d];
  }
  for (int d = 0; d < head_dim; ++d) narrow(sum[d] / total, output[d]);
}

// The keys that a query at the end of a context sees.
inline Range visible(int64_t context, const Scoring& scoring) {
  return {scoring.window ? std::max<int64_t>(0, context - scoring.window) : 0, context};
}

// How many threads share a context, so that all have work.
inline int64_t parts_of(const int64_t* contexts, int64_t num_rows, int kv_heads, const Scoring& scoring,
                        int num_threads) {
  if (num_rows * kv_heads >= num_threads) return 1;
  int64_t longest = 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    const Range range = visible(contexts[row], scoring);
    longest = std::max(longest, range.stop - range.begin);
  }
  const int64_t wanted = (num_threads + num_rows * kv_heads - 1) / (num_rows * kv_heads);
  return std::max<int64_t>(1, std::min(wanted, longest / kLeastPart));
}

// queries [num_rows, kv_heads * group, head_dim], rows `query_stride` apart → out, contiguous; keys and values
// [kv_heads, slots, head_dim]; row r's blocks begin at blocks[starts[r]]; contexts [num_rows].
template <typename T>
void decode_attention(const T* queries, int64_t query_stride, const T* keys, const T* values,
                      const int64_t* blocks, const int64_t* starts, const int64_t* contexts, int64_t num_rows,
                      int kv_heads, int group, int head_dim, int64_t slots, int64_t block_size,
                      const Scoring& scoring, int num_threads, T* out) {
  const auto of_one_head = head_dim == 128   ? attend<T, 128>
                           : head_dim == 64  ? attend<T, 64>
                           : head_dim == 256 ? attend<T, 256>
                                             : attend<T, 0>;
  const int64_t num_heads = kv_heads * group;
  const int64_t num_parts = parts_of(contexts, num_rows, kv_heads, scoring, num_threads);
  std::vector<Part> parts(num_parts > 1 ? num_parts * num_rows * num_heads : 0);  // [num_parts, num_rows, num_heads]
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t item = 0; item < num_rows * kv_heads * num_parts; ++item) {
    const int64_t number = item / (num_rows * kv_heads), row = item / kv_heads % num_rows, head = item % kv_heads;
    const Cache<T> cache{keys + head * slots * head_dim, values + head * slots * head_dim,
                         blocks + starts[row], block_size};
    Range range = visible(contexts[row], scoring);
    if (num_parts > 1) {
      const int64_t share = (range.stop - range.begin + num_parts - 1) / num_parts;
      range.begin += number * share;
      range.stop = std::min(range.stop, range.begin + share);
    }
    for (int first = 0; first < group; first += kHeadsAtOnce) {
      const int64_t first_head = head * group + first;
      Scoring of_heads = scoring;
      of_heads.sinks = scoring.sinks && number == 0 ? scoring.sinks + first_head : nullptr;
      of_one_head(queries + row * query_stride + first_head * head_dim, std::min(kHeadsAtOnce, group - first), cache,
                  range, head_dim, of_heads, out + (row * num_heads + first_head) * head_dim,
                  num_parts > 1 ? &parts[(number * num_rows + row) * num_heads + first_head] : nullptr);
    }
  }
  if (num_parts == 1) return;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t item = 0; item < num_rows * num_heads; ++item)
    combine(&parts[item], num_parts, num_rows * num_heads, head_dim, out + item * head_dim);
}

// scores [num_heads, num_rows, num_columns] → their softmax in place. The last row sees the last column, each before
// it one less, and of these as many as the window has; columns that a row doesn't see become 0.
template <typename T>
void causal_softmax(T* scores, int64_t num_heads, int64_t num_rows, int64_t num_columns, const Scoring& scoring,
                    int num_threads) {
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<float> weights(num_columns);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < num_heads * num_rows; ++item) {
      const int64_t stop = num_columns - num_rows + 1 + item % num_rows;
      const int64_t begin = scoring.window ? std::max<int64_t>(0, stop - scoring.window) : 0;
      T* row = scores + item * num_columns + begin;
      const int64_t visible = stop - begin;
      float scale = scoring.scale, highest = widen(row[0]), total = 0.0f;
      for (int64_t i = 0; i < visible; ++i) weights[i] = widen(row[i]);
      if (scoring.softcap > 0) {
        const float share_of_cap = scale / scoring.softcap;
        scale = 1.0f;
        for (int64_t i = 0; i < visible; ++i)
          weights[i] = scoring.softcap * hyperbolic_tangent(weights[i] * share_of_cap);
        highest = weights[0];
      }
      for (int64_t i = 0; i < visible; ++i) highest = weights[i] > highest ? weights[i] : highest;
      if (scoring.sinks) {
        const float sink = scoring.sinks[item / num_rows];
        highest = std::max(highest, sink / scale);
        total = exponential(sink - highest * scale);
      }
      for (int64_t i = 0; i < visible; ++i) weights[i] = exponential((weights[i] - highest) * scale);
      for (int64_t i = 0; i < visible; ++i) total += weights[i];
      const float share = 1.0f / total;
      std::memset(static_cast<void*>(row - begin), 0, sizeof(T) * begin);
      for (int64_t i = 0; i < visible; ++i) narrow(weights[i] * share, row[i]);
      std::memset(static_cast<void*>(row + visible), 0, sizeof(T) * (num_columns - stop));
    }
  }
}

}  // namespace
