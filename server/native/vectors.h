// Sixteen floats at a time (AVX-512 F, BW, DQ, VL), and bfloat16 as what it is: the upper half of a float.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

// Sixteen times the same number. In assembly, because LLVM would load those of all rows of a tile first, and the sums would lose their registers.
INLINE __m512 everywhere(const float *number) {
  __m512 all;
  __asm__ volatile("vbroadcastss %1, %0" : "=v"(all) : "m"(*number));
  return all;
}

// Of 16 pairs of bfloat16, each pair in one 32-bit word: the first ones and the second ones, as floats.
INLINE __m512 first_of_pairs(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE __m512 second_of_pairs(__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u))); }

// Of the floats 0, 2, … 30 and 1, 3, … 31 of 32 ones the first and the last sixteen.
INLINE __m512 woven_low(__m512 even, __m512 odd) {
  const __m512i pick = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(even, pick, odd);
}
INLINE __m512 woven_high(__m512 even, __m512 odd) {
  const __m512i pick = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(even, pick, odd);
}

// To the nearest bfloat16, ties to even, as torch rounds; NaN stays NaN. Without AVX512-BF16, which not every CPU has.
INLINE __m256i narrowed(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16));
}

// e^x within 2 units in the last place; 0 below -87.
INLINE __m512 exponential(__m512 x) {
  const __mmask16 vanishes = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.f), _CMP_LT_OQ);
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts (Cephes, expf)
  rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
  const float terms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  for (float term : terms) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
  sum = _mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.f)));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(sum, whole), vanishes, _mm512_setzero_ps());
}

INLINE __m512 silu(__m512 x) {
  return _mm512_div_ps(x, _mm512_add_ps(exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)), _mm512_set1_ps(1.f)));
}
