// Softmax attention of a few queries on one key-value head. Keys and values are bfloat16 [capacity, size], sums are floats.
#pragma once
#include "vectors.h"

struct Query {
  const float *values;  // [size]: scaled, the even dimensions first, then the odd ones
  float *attended;      // [size], in the usual order
  int64_t begin, end;   // of the keys that it sees
};

static const int MOST_QUERIES = 4;  // at once, on the same keys
static const int KEYS_AT_ONCE = 4;

// Scores of keys from … from + 3 for all queries, whether they see them or not; `last` is the last key that may be read.
template <int QUERIES>
INLINE void score(const Query *queries, const bf16 *keys, int64_t size, int64_t from, int64_t last, float *scores, int64_t stride) {
  __m512 sum[16];
  for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
  const bf16 *key[KEYS_AT_ONCE];
  for (int j = 0; j < KEYS_AT_ONCE; j++) key[j] = keys + (from + j < last ? from + j : last) * size;
  for (int64_t d = 0; d < size; d += 32) {
    __m512i both[KEYS_AT_ONCE];
#pragma clang loop unroll(full)
    for (int j = 0; j < KEYS_AT_ONCE; j++) both[j] = _mm512_loadu_si512(key[j] + d);
#pragma clang loop unroll(full)
    for (int q = 0; q < QUERIES; q++) {
      const __m512 even = _mm512_loadu_ps(queries[q].values + d / 2), odd = _mm512_loadu_ps(queries[q].values + (size + d) / 2);
#pragma clang loop unroll(full)
      for (int j = 0; j < KEYS_AT_ONCE; j++) {
        __m512 &s = sum[q * KEYS_AT_ONCE + j];
        s = _mm512_fmadd_ps(odd, second_of_pairs(both[j]), _mm512_fmadd_ps(even, first_of_pairs(both[j]), s));
      }
    }
  }
  const __m512 all = sums(sum);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, all);
#pragma clang loop unroll(full)
  for (int q = 0; q < QUERIES; q++) _mm_storeu_ps(scores + q * stride + from, _mm_loadu_ps(lanes + q * KEYS_AT_ONCE));
}

// Scores → weights, in place, not yet divided by their sum, which is returned. Zero outside of [begin, end) as far as `first` and `padded`.
INLINE float weigh(float *scores, int64_t first, int64_t begin, int64_t end, int64_t padded) {
  __m512 largest = _mm512_set1_ps(-3e38f);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int pass = 0; pass < 2; pass++) {
    __m512 total = _mm512_setzero_ps();
    const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t l = first; l < padded; l += 16) {
      const __m512i place = _mm512_add_epi32(_mm512_set1_epi32((int)l), lane);
      const __mmask16 seen = _mm512_cmp_epi32_mask(place, _mm512_set1_epi32((int)begin), _MM_CMPINT_NLT) &
                             _mm512_cmp_epi32_mask(place, _mm512_set1_epi32((int)end), _MM_CMPINT_LT);
      const __m512 score = _mm512_loadu_ps(scores + l);
      if (pass == 0) {
        largest = _mm512_mask_max_ps(largest, seen, largest, score);
      } else {
        const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, shift)));
        total = _mm512_add_ps(total, weight);
        _mm512_storeu_ps(scores + l, weight);
      }
    }
    if (pass) return _mm512_reduce_add_ps(total);
  }
  return 0;
}

template <int QUERIES>
static void attend(const Query *queries, const bf16 *keys, const bf16 *values, int64_t size, float *scores, int64_t stride) {
  int64_t begin = queries[0].begin, end = queries[0].end;
  for (int q = 1; q < QUERIES; q++) {
    begin = queries[q].begin < begin ? queries[q].begin : begin;
    end = queries[q].end > end ? queries[q].end : end;
  }
  const int64_t first = begin / 16 * 16, padded = (end + 15) / 16 * 16;
  for (int64_t l = first; l < end; l += KEYS_AT_ONCE) score<QUERIES>(queries, keys, size, l, end - 1, scores, stride);
  float share[QUERIES];
  for (int q = 0; q < QUERIES; q++) share[q] = 1.f / weigh(scores + q * stride, first, queries[q].begin, queries[q].end, padded);
  for (int64_t d = 0; d < size; d += 32) {
    __m512 even[QUERIES], odd[QUERIES];
#pragma clang loop unroll(full)
    for (int q = 0; q < QUERIES; q++) even[q] = odd[q] = _mm512_setzero_ps();
    for (int64_t l = begin; l < end; l++) {
      const __m512i both = _mm512_loadu_si512(values + l * size + d);
      const __m512 first_half = first_of_pairs(both), second_half = second_of_pairs(both);
#pragma clang loop unroll(full)
      for (int q = 0; q < QUERIES; q++) {
        const __m512 weight = _mm512_set1_ps(scores[q * stride + l]);
        even[q] = _mm512_fmadd_ps(weight, first_half, even[q]);
        odd[q] = _mm512_fmadd_ps(weight, second_half, odd[q]);
      }
    }
#pragma clang loop unroll(full)
    for (int q = 0; q < QUERIES; q++) {
      const __m512 part = _mm512_set1_ps(share[q]), e = _mm512_mul_ps(even[q], part), o = _mm512_mul_ps(odd[q], part);
      _mm512_storeu_ps(queries[q].attended + d, woven_low(e, o));
      _mm512_storeu_ps(queries[q].attended + d + 16, woven_high(e, o));
    }
  }
}
