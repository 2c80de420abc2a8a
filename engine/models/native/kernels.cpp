// A decoder's small operations on a CPU, each in one pass over memory, on all threads.
//
// Plain C++ that the compiler vectorises for the machine it runs on; every number is widened to float32, processed,
// and rounded once at the end. Called through engine/models/native/kernels.py, which checks shapes and types: nothing
// is checked here. Tensors are contiguous except for the strides that are passed, in elements.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

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

constexpr int kMaxHeadDim = 512;
constexpr int kHeadsAtOnce = 8;  // query heads that share the reading of a key
constexpr int kRowsAtOnce = 32;  // keys between two updates of the running maximum

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

// One query per head against the last of `context` keys that the window shows, with an online softmax: nothing of the
// context's length is stored. `scoring.sinks` are those of the heads. D is the head's dimension if known at compile
// time, else 0.
template <typename T, int D>
void attend(const T* queries, int heads, const Cache<T>& cache, int64_t context, int head_dim,
            const Scoring& scoring, T* outputs) {
  constexpr int kDim = D ? D : kMaxHeadDim;
  const int dim = D ? D : head_dim;
  alignas(64) float query[kHeadsAtOnce][kDim], sum[kHeadsAtOnce][kDim], weight[kHeadsAtOnce][kRowsAtOnce];
  float highest[kHeadsAtOnce], total[kHeadsAtOnce];
  for (int h = 0; h < heads; ++h) {
    for (int d = 0; d < dim; ++d) query[h][d] = widen(queries[h * dim + d]) * scoring.scale;
    for (int d = 0; d < dim; ++d) sum[h][d] = 0.0f;
    highest[h] = scoring.sinks ? scoring.sinks[h] : -1e30f;
    total[h] = scoring.sinks ? 1.0f : 0.0f;
  }
  const int64_t begin = scoring.window ? std::max<int64_t>(0, context - scoring.window) : 0;
  for (int64_t first = begin, rows; first < context; first += rows) {
    const int64_t within = first % cache.block_size;
    rows = std::min<int64_t>({kRowsAtOnce, cache.block_size - within, context - first});
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
  for (int h = 0; h < heads; ++h)
    for (int d = 0; d < dim; ++d) narrow(sum[h][d] / total[h], outputs[h * dim + d]);
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
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t item = 0; item < num_rows * kv_heads; ++item) {
    const int64_t row = item / kv_heads, head = item % kv_heads;
    const Cache<T> cache{keys + head * slots * head_dim, values + head * slots * head_dim,
                         blocks + starts[row], block_size};
    for (int first = 0; first < group; first += kHeadsAtOnce) {
      const int64_t offset = (head * group + first) * head_dim;
      Scoring of_heads = scoring;
      if (scoring.sinks) of_heads.sinks += head * group + first;
      of_one_head(queries + row * query_stride + offset, std::min(kHeadsAtOnce, group - first), cache,
                  contexts[row], head_dim, of_heads, out + row * kv_heads * group * head_dim + offset);
    }
  }
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

#define EXPORT(SUFFIX, T)                                                                                     \
  extern "C" void decode_attention_##SUFFIX(                                                                  \
      const T* queries, int64_t query_stride, const T* keys, const T* values, const int64_t* blocks,          \
      const int64_t* starts, const int64_t* contexts, int64_t num_rows, int kv_heads, int group,              \
      int head_dim, int64_t slots, int64_t block_size, float scale, int64_t window, float softcap,            \
      const float* sinks, int num_threads, T* out) {                                                          \
    decode_attention(queries, query_stride, keys, values, blocks, starts, contexts, num_rows, kv_heads,       \
                     group, head_dim, slots, block_size, Scoring{scale, window, softcap, sinks}, num_threads, \
                     out);                                                                                    \
  }                                                                                                           \
  extern "C" void causal_softmax_##SUFFIX(T* scores, int64_t num_heads, int64_t num_rows,                     \
                                          int64_t num_columns, float scale, int64_t window, float softcap,    \
                                          const float* sinks, int num_threads) {                              \
    causal_softmax(scores, num_heads, num_rows, num_columns, Scoring{scale, window, softcap, sinks},          \
                   num_threads);                                                                              \
  }                                                                                                           \
  extern "C" void rotate_and_store_##SUFFIX(T* heads, const T* weights, const T* cos, const T* signed_sin,    \
                                            const int64_t* slot_of_row, T* keys, T* values, int64_t num_rows, \
                                            int num_heads, int kv_heads, int head_dim, int size,              \
                                            int64_t slots, float eps, int num_threads) {                      \
    rotate_and_store(heads, weights, cos, signed_sin, slot_of_row, keys, values, num_rows, num_heads,         \
                     kv_heads, head_dim, size, slots, eps, num_threads);                                      \
  }                                                                                                           \
  extern "C" void add_and_normalise_##SUFFIX(T* residual, const T* delta, const T* weight, int64_t num_rows,  \
                                             int64_t size, float eps, int num_threads, T* out) {              \
    add_and_normalise(residual, delta, weight, num_rows, size, eps, num_threads, out);                        \
  }                                                                                                           \
  extern "C" void activate_and_multiply_##SUFFIX(const T* gate_up, int64_t num_rows, int64_t size,            \
                                                 int activation, int num_threads, T* out) {                   \
    activate_and_multiply(gate_up, num_rows, size, activation, num_threads, out);                             \
  }                                                                                                           \
  extern "C" void forbid_tokens_##SUFFIX(T* logits, const int64_t* rows, const uint32_t* bits,                \
                                         int64_t num_rows, int64_t num_words, int64_t vocab_size,            \
                                         int num_threads) {                                                   \
    forbid_tokens(logits, rows, bits, num_rows, num_words, vocab_size, num_threads);                          \
  }                                                                                                           \
  extern "C" void draw_tokens_##SUFFIX(const T* logits, const int64_t* rows, const float* temperatures,       \
                                       const float* min_ps, const double* uniforms, int64_t num_rows,         \
                                       int64_t vocab_size, int num_threads, int64_t* tokens) {                \
    draw_tokens(logits, rows, temperatures, min_ps, uniforms, num_rows, vocab_size, num_threads, tokens);     \
  }

EXPORT(bfloat16, bfloat16)
EXPORT(float32, float)
