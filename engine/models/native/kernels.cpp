// A decoder's small operations on a CPU, each in one pass over memory, on all threads.
//
// Plain C++ that the compiler vectorises for the machine it runs on; every number is widened to float32, processed,
// and rounded once at the end. Called through engine/models/native/kernels.py, which checks shapes and types: nothing
// is checked here. Tensors are contiguous except for the strides that are passed, in elements.

#include "attention.h"
#include "layers.h"
#include "sampling.h"

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
