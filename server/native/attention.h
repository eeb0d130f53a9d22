// Softmax attention of a few queries on one key-value head. Keys and values are bfloat16 [capacity, size], sums are floats. A query goes
// through its keys in blocks, which begin at the same positions for everybody, and adds up what it found in them from the first to the last:
// so it finds the same, bit by bit, whoever attends beside it and whoever computes its blocks.
#pragma once
#include "vectors.h"

struct Query {
  const float *values;  // [size], scaled
  int64_t begin, end;   // of the keys that it sees
};

static const int MOST_QUERIES = 8;  // at once, on the same keys
static const int BUNDLE = 32;       // at once, on the same block
static const int LARGEST_HEAD = 256;
static const int KEYS_AT_ONCE = 16;
static const int BLOCK = 512;  // keys: with their values they stay in a core's cache for the next queries
static const int FOUND = 16;   // floats that are kept of a block besides the sums of values, with padding
static const float NO_SCORE = -3e38f;
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

// Scores of 16 keys from `from` on for all queries, whether they see them or not; `last` is the last key that may be read. A key's score is
// summed pair by pair of dimensions, in one order for any number of queries.
template <int QUERIES>
INLINE void score(const Query *queries, const bf16 *keys, int64_t size, int64_t from, int64_t last, float (*scores)[BLOCK]) {
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
  for (int q = 0; q < QUERIES; q++) _mm512_storeu_ps(scores[q] + from % BLOCK, sum[q]);
}

// What a query has found: the sums of values, each times e^(score - largest score), [size]; the largest score; the sum of the weights.
struct Found {
  float *sums;
  int64_t size;

  float &largest() const { return sums[size]; }
  float &total() const { return sums[size + 1]; }
  static constexpr int64_t room(int64_t size) { return size + FOUND; }

  void clear() const {
    for (int64_t d = 0; d < size; d += 16) _mm512_storeu_ps(sums + d, _mm512_setzero_ps());
    largest() = NO_SCORE, total() = 0;
  }

  void add(const Found &next) const {
    const float most = largest() > next.largest() ? largest() : next.largest();
    const __m512 old = exponential(_mm512_set1_ps(largest() - most)), fresh = exponential(_mm512_set1_ps(next.largest() - most));
    for (int64_t d = 0; d < size; d += 16)
      _mm512_storeu_ps(sums + d, _mm512_fmadd_ps(_mm512_loadu_ps(sums + d), old, _mm512_mul_ps(_mm512_loadu_ps(next.sums + d), fresh)));
    total() = total() * _mm512_cvtss_f32(old) + next.total() * _mm512_cvtss_f32(fresh);
    largest() = most;
  }

  void write(float *attended) const {
    const __m512 share = _mm512_set1_ps(1.f / total());
    for (int64_t d = 0; d < size; d += 16) _mm512_storeu_ps(attended + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), share));
  }
};

// Of the keys l … l + 15, those that the query sees.
INLINE __mmask16 seen(const Query &query, int64_t l) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i place = _mm512_add_epi32(_mm512_set1_epi32((int)l), lane);
  return _mm512_cmp_epi32_mask(place, _mm512_set1_epi32((int)query.begin), _MM_CMPINT_NLT) &
         _mm512_cmp_epi32_mask(place, _mm512_set1_epi32((int)query.end), _MM_CMPINT_LT);
}

// Scores of the keys from … to - 1 of a block → weights, in place; 0 for a key that the query does not see.
INLINE void weigh(const Query &query, int64_t from, int64_t to, float *scores, const Found &found) {
  __m512 largest = _mm512_set1_ps(NO_SCORE), total = _mm512_setzero_ps();
  for (int64_t l = from; l < to; l += 16) largest = _mm512_mask_max_ps(largest, seen(query, l), largest, _mm512_loadu_ps(scores + l % BLOCK));
  found.largest() = _mm512_reduce_max_ps(largest);
  for (int64_t l = from; l < to; l += 16) {
    const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + l % BLOCK), _mm512_set1_ps(found.largest()));
    const __m512 weight = _mm512_maskz_mov_ps(seen(query, l), exponential(below));
    total = _mm512_add_ps(total, weight);
    _mm512_storeu_ps(scores + l % BLOCK, weight);
  }
  found.total() = _mm512_reduce_add_ps(total);
}

// What the queries find in the block of keys that begins at `from`, a multiple of BLOCK.
template <int QUERIES>
static void attend(const Query *queries, const bf16 *keys, const bf16 *values, int64_t size, int64_t from, const Found *found) {
  int64_t begin = queries[0].begin, end = queries[0].end;
  for (int q = 1; q < QUERIES; q++) {
    begin = queries[q].begin < begin ? queries[q].begin : begin;
    end = queries[q].end > end ? queries[q].end : end;
  }
  begin = begin < from ? from : begin;
  end = end < from + BLOCK ? end : from + BLOCK;
  alignas(64) float scores[QUERIES][BLOCK];
  const int64_t first = begin / KEYS_AT_ONCE * KEYS_AT_ONCE;
  for (int64_t l = first; l < end; l += KEYS_AT_ONCE) score<QUERIES>(queries, keys, size, l, end - 1, scores);
  for (int q = 0; q < QUERIES; q++) weigh(queries[q], first, end, scores[q], found[q]);
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
        const __m512 weight = _mm512_set1_ps(scores[q][l % BLOCK]);
        even[q] = _mm512_fmadd_ps(weight, first_half, even[q]);
        odd[q] = _mm512_fmadd_ps(weight, second_half, odd[q]);
      }
    }
#pragma clang loop unroll(full)
    for (int q = 0; q < QUERIES; q++) {
      _mm512_storeu_ps(found[q].sums + d, woven_low(even[q], odd[q]));
      _mm512_storeu_ps(found[q].sums + d + 16, woven_high(even[q], odd[q]));
    }
  }
}

typedef void (*Attend)(const Query *, const bf16 *, const bf16 *, int64_t, int64_t, const Found *);
static constexpr Attend ATTEND[] = {attend<1>, attend<2>, attend<3>, attend<4>, attend<5>, attend<6>, attend<7>, attend<8>};
static_assert(sizeof ATTEND / sizeof *ATTEND == MOST_QUERIES, "one for each number of queries");
