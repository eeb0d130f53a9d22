// Softmax attention of a few queries on one key-value head. Keys and values are bfloat16 [capacity, size], sums are floats.
#pragma once
#include "vectors.h"

struct Query {
  const float *values;  // [size], scaled
  float *attended;      // [size], in the usual order
  int64_t begin, end;   // of the keys that it sees
};

static const int MOST_QUERIES = 8;  // at once, on the same keys
static const int KEYS_AT_ONCE = 16;
static const int FETCHED_AHEAD = 48;  // keys before their use: contexts of thousands do not stay in a core's cache

// Columns of a 16 × 16 table of 32-bit words become rows.
INLINE void transpose(__m512i t[16]) {
  __m512i u[16];
  for (int i = 0; i < 16; i += 2) {
    u[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
    u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    t[i] = _mm512_unpacklo_epi64(u[i], u[i + 2]);
    t[i + 1] = _mm512_unpackhi_epi64(u[i], u[i + 2]);
    t[i + 2] = _mm512_unpacklo_epi64(u[i + 1], u[i + 3]);
    t[i + 3] = _mm512_unpackhi_epi64(u[i + 1], u[i + 3]);
  }
  // Now t[4r + c] has, in each 128-bit part p, column 4p + c of the rows 4r … 4r + 3.
  for (int c = 0; c < 4; c++) {
    const __m512i low = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x88), high = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x88), high2 = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xdd);
    u[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    u[8 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    u[4 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    u[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < 16; i++) t[i] = u[i];
}

// Scores of keys from … from + 15 for all queries, whether they see them or not; `last` is the last key that may be read. A key's score is
// summed pair by pair of dimensions, in one order for any number of queries.
template <int QUERIES>
INLINE void score(const Query *queries, const bf16 *keys, int64_t size, int64_t from, int64_t last, float *scores, int64_t stride) {
  __m512 sum[QUERIES];
  for (int q = 0; q < QUERIES; q++) sum[q] = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 32) {
    __m512i pairs[16];  // at first of a key, then of all keys
    for (int j = 0; j < KEYS_AT_ONCE; j++) {
      pairs[j] = _mm512_loadu_si512(keys + (from + j < last ? from + j : last) * size + d);
      _mm_prefetch((const char *)(keys + (from + j + FETCHED_AHEAD) * size + d), _MM_HINT_T0);
    }
    transpose(pairs);
#pragma clang loop unroll(full)
    for (int k = 0; k < 16; k++) {
      const __m512 first = first_of_pairs(pairs[k]), second = second_of_pairs(pairs[k]);
#pragma clang loop unroll(full)
      for (int q = 0; q < QUERIES; q++) {
        const float *query = queries[q].values + d + 2 * k;
        sum[q] = _mm512_fmadd_ps(everywhere(query + 1), second, _mm512_fmadd_ps(everywhere(query), first, sum[q]));
      }
    }
  }
  for (int q = 0; q < QUERIES; q++) _mm512_storeu_ps(scores + q * stride + from, sum[q]);
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
  for (int64_t l = first; l < padded; l += KEYS_AT_ONCE) score<QUERIES>(queries, keys, size, l, end - 1, scores, stride);
  float share[QUERIES];
  for (int q = 0; q < QUERIES; q++) share[q] = 1.f / weigh(scores + q * stride, first, queries[q].begin, queries[q].end, padded);
  for (int64_t d = 0; d < size; d += 32) {
    __m512 even[QUERIES], odd[QUERIES];
#pragma clang loop unroll(full)
    for (int q = 0; q < QUERIES; q++) even[q] = odd[q] = _mm512_setzero_ps();
    for (int64_t l = begin; l < end; l++) {
      const __m512i both = _mm512_loadu_si512(values + l * size + d);
      _mm_prefetch((const char *)(values + (l + FETCHED_AHEAD) * size + d), _MM_HINT_T0);
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

typedef void (*Attend)(const Query *, const bf16 *, const bf16 *, int64_t, float *, int64_t);
