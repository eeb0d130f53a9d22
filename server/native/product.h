// rows [M, K] × weightᵀ [K, N], the weight packed once as [N / 16][K / 2][16][2]: what sixteen columns need of two k is one cache line.
//
// One accumulator per number and one order of k, whatever M is and whichever thread computes it: a row's result does not depend on its
// batch mates. Two kernels: `Widening` makes floats of the weights and multiplies floats, exactly; `Pairing` uses AVX512-BF16's dot
// product of pairs, for CPUs where that is the faster one.
#pragma once
#include "vectors.h"

struct Weight {
  const bf16 *packed;
  const float *bias;  // or null
  int64_t outputs;    // N
  int64_t inputs;     // K, even
};

enum Effect { STORE, ADD, STORE_BF16 };

struct Target {
  Effect effect;
  void *data;  // float [M, stride]; bf16 for STORE_BF16
  int64_t stride;
};

static const int MOST_ROWS = 8;    // of a tile
static const int MOST_PANELS = 8;  // of a tile, each of 16 columns
static const int AHEAD = 32;       // cache lines of a panel that are fetched before their use

INLINE int64_t panels_of(int64_t outputs) { return (outputs + 15) / 16; }

INLINE void finish(const Target &target, const Weight &weight, int64_t row, int64_t column, __m512 sum) {
  const int64_t left = weight.outputs - column;
  const __mmask16 there = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
  if (weight.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, weight.bias + column));
  const int64_t place = row * target.stride + column;
  if (target.effect == STORE_BF16) {
    _mm256_mask_storeu_epi16((bf16 *)target.data + place, there, narrowed(sum));
    return;
  }
  float *out = (float *)target.data + place;
  if (target.effect == ADD) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, out));
  _mm512_mask_storeu_ps(out, there, sum);
}

struct Widening {
  typedef float Input;
  static constexpr int panels[MOST_ROWS] = {8, 6, 6, 5, 4, 3, 3, 3};  // by rows: as many sums as the 32 registers leave room for

  template <int ROWS, int PANELS> static void sum(__m512 (&sums)[ROWS][PANELS], const float *x, int64_t inputs, const bf16 *w) {
    const int64_t pairs = inputs / 2;
    for (int64_t k = 0; k < pairs; k++) {
      __m512 first[PANELS], second[PANELS];
#pragma clang loop unroll(full)
      for (int p = 0; p < PANELS; p++) {
        const bf16 *line = w + (p * pairs + k) * 32;
        _mm_prefetch((const char *)(line + AHEAD * 32), _MM_HINT_T0);
        const __m512i both = _mm512_loadu_si512(line);
        first[p] = first_of_pairs(both);
        second[p] = second_of_pairs(both);
      }
#pragma clang loop unroll(full)
      for (int m = 0; m < ROWS; m++) {
        const __m512 factor = everywhere(x + m * inputs + 2 * k);
#pragma clang loop unroll(full)
        for (int p = 0; p < PANELS; p++) sums[m][p] = _mm512_fmadd_ps(factor, first[p], sums[m][p]);
      }
#pragma clang loop unroll(full)
      for (int m = 0; m < ROWS; m++) {
        const __m512 factor = everywhere(x + m * inputs + 2 * k + 1);
#pragma clang loop unroll(full)
        for (int p = 0; p < PANELS; p++) sums[m][p] = _mm512_fmadd_ps(factor, second[p], sums[m][p]);
      }
    }
  }
};

struct Pairing {
  typedef bf16 Input;
  static constexpr int panels[MOST_ROWS] = {8, 6, 6, 6, 4, 4, 3, 3};

  template <int ROWS, int PANELS>
  __attribute__((target("avx512bf16"))) static void sum(__m512 (&result)[ROWS][PANELS], const bf16 *x, int64_t inputs, const bf16 *w) {
    // A function of another target than its caller's is not inlined: sums of the caller's would be written back to memory at every k.
    __m512 sums[ROWS][PANELS];
    memcpy(sums, result, sizeof sums);
    const int64_t pairs = inputs / 2;
    for (int64_t k = 0; k < pairs; k++) {
      __m512bh weights[PANELS];
#pragma clang loop unroll(full)
      for (int p = 0; p < PANELS; p++) {
        const bf16 *line = w + (p * pairs + k) * 32;
        _mm_prefetch((const char *)(line + AHEAD * 32), _MM_HINT_T0);
        weights[p] = (__m512bh)_mm512_loadu_si512(line);
      }
#pragma clang loop unroll(full)
      for (int m = 0; m < ROWS; m++) {
        int pair;
        memcpy(&pair, x + m * inputs + 2 * k, sizeof pair);
        const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
#pragma clang loop unroll(full)
        for (int p = 0; p < PANELS; p++) sums[m][p] = _mm512_dpbf16_ps(sums[m][p], factors, weights[p]);
      }
    }
    memcpy(result, sums, sizeof sums);
  }
};

template <class Kernel, int ROWS, int PANELS>
static void tile(const typename Kernel::Input *x, const Weight &weight, int64_t panel, const Target &target, int64_t row) {
  __m512 sums[ROWS][PANELS];
#pragma clang loop unroll(full)
  for (int m = 0; m < ROWS; m++)
#pragma clang loop unroll(full)
    for (int p = 0; p < PANELS; p++) sums[m][p] = _mm512_setzero_ps();
  Kernel::sum(sums, x + row * weight.inputs, weight.inputs, weight.packed + panel * weight.inputs * 16);
#pragma clang loop unroll(full)
  for (int m = 0; m < ROWS; m++)
#pragma clang loop unroll(full)
    for (int p = 0; p < PANELS; p++) finish(target, weight, row + m, (panel + p) * 16, sums[m][p]);
}

template <class Kernel> using Tile = void (*)(const typename Kernel::Input *, const Weight &, int64_t, const Target &, int64_t);

// Tiles of fewer panels stand in for those that would not fit into the registers; they are never asked for.
template <class Kernel, int ROWS, int PANELS> constexpr Tile<Kernel> fitting() {
  return tile<Kernel, ROWS, (PANELS <= Kernel::panels[ROWS - 1] ? PANELS : 1)>;
}
#define TILES(ROWS)                                                                                                                   \
  {fitting<Kernel, ROWS, 1>(), fitting<Kernel, ROWS, 2>(), fitting<Kernel, ROWS, 3>(), fitting<Kernel, ROWS, 4>(),                     \
   fitting<Kernel, ROWS, 5>(), fitting<Kernel, ROWS, 6>(), fitting<Kernel, ROWS, 7>(), fitting<Kernel, ROWS, 8>()}

// How many panels make a piece of work: what a tile takes, or less, so that the pieces come out even among the threads.
template <class Kernel> static int64_t piece(int64_t rows, int64_t panels, int64_t threads) {
  const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS, wide = Kernel::panels[(rows + blocks - 1) / blocks - 1];
  const int64_t rounds = (panels + wide * threads - 1) / (wide * threads);
  return (panels + rounds * threads - 1) / (rounds * threads);
}

// `panels` panels from `panel` on, at most a piece, for all rows of x.
template <class Kernel>
static void multiply(const typename Kernel::Input *x, int64_t rows, const Weight &weight, int64_t panel, int64_t panels, const Target &target) {
  static constexpr Tile<Kernel> tiles[MOST_ROWS][MOST_PANELS] = {TILES(1), TILES(2), TILES(3), TILES(4),
                                                                 TILES(5), TILES(6), TILES(7), TILES(8)};
  const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
  for (int64_t block = 0; block < blocks; block++) {  // of nearly equal heights
    const int64_t row = rows * block / blocks, height = rows * (block + 1) / blocks - row;
    tiles[height - 1][panels - 1](x, weight, panel, target, row);
  }
}
