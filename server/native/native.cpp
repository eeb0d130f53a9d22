// Two things that torch does slowly on a CPU: products of a few rows with a bfloat16 weight, and a whole step of a Llama-like model
// in one parallel region. Called by engine/native.py through ctypes; its structures mirror those of this file. The threads are those
// of torch's own OpenMP library, so that no two pools fight for the cores.
//
// Nothing here allocates, fails or keeps anything: sizes and pointers are the caller's promise.
#include <math.h>
#include <sched.h>

#include "attention.h"
#include "product.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

typedef void (*Region)(void *);

// One cache line, zero at first.
struct alignas(64) Phase {
  int64_t taken, done;
};

struct Team {
  void (*parallel)(Region, void *, unsigned threads, unsigned flags);  // GOMP_parallel
  int64_t threads;
  int64_t pairing;  // whether the CPU multiplies pairs of bfloat16 faster than floats
};

// A thread that goes through the phases of a call. A phase ends when its pieces are done, not when all threads have come: one that the
// system has put aside holds up nobody, unless it has a piece in hand, and finds what is left when it comes back.
struct Worker {
  const Team &team;
  Phase *phase;  // the next one

  template <class Work> void share(int64_t pieces, const Work &work) {
    Phase &now = *phase++;
    for (;;) {
      const int64_t piece = __atomic_fetch_add(&now.taken, 1, __ATOMIC_RELAXED);
      if (piece >= pieces) break;
      work(piece);
      __atomic_fetch_add(&now.done, 1, __ATOMIC_RELEASE);
    }
    for (int turns = 0; __atomic_load_n(&now.done, __ATOMIC_ACQUIRE) < pieces; turns++)
      turns < 2000 ? _mm_pause() : (void)sched_yield();
  }

  // `size` numbers in pieces of 4096: work(begin, end), both multiples of 16 if `size` is one.
  template <class Work> void share_range(int64_t size, const Work &work) {
    share((size + 4095) / 4096, [&](int64_t i) { work(i * 4096, size < (i + 1) * 4096 ? size : (i + 1) * 4096); });
  }

  // Several products of the same rows. work(which, panel, panels).
  template <class Kernel, class Work> void share_products(int64_t rows, const Weight *const *weights, int count, const Work &work) {
    int64_t size[4], first[5] = {0};
    for (int w = 0; w < count; w++) {
      const int64_t panels = panels_of(weights[w]->outputs);
      size[w] = piece<Kernel>(rows, panels, team.threads);
      first[w + 1] = first[w] + (panels + size[w] - 1) / size[w];
    }
    share(first[count], [&](int64_t i) {
      int w = 0;
      while (i >= first[w + 1]) w++;
      const int64_t panel = (i - first[w]) * size[w], left = panels_of(weights[w]->outputs) - panel;
      work(w, panel, left < size[w] ? left : size[w]);
    });
  }
};

EXPORT void millrace_pack(const bf16 *weight, int64_t outputs, int64_t inputs, bf16 *packed) {
  for (int64_t panel = 0; panel < panels_of(outputs); panel++)
    for (int64_t k = 0; k < inputs; k += 2)
      for (int64_t column = 0; column < 16; column++, packed += 2) {
        const int64_t output = panel * 16 + column;
        packed[0] = output < outputs ? weight[output * inputs + k] : 0;
        packed[1] = output < outputs ? weight[output * inputs + k + 1] : 0;
      }
}

struct Linear {
  const Team *team;
  const Weight *weight;
  const void *x;  // [rows, inputs], as the kernel takes them: bfloat16 for `Pairing`, else floats
  int64_t rows;
  bf16 *out;  // [rows, outputs]
};

struct LinearCall {
  const Linear &linear;
  Phase phase;
};

template <class Kernel> static void linear_part(void *argument) {
  LinearCall &call = *(LinearCall *)argument;
  const Linear &linear = call.linear;
  const Target target = {STORE_BF16, linear.out, linear.weight->outputs};
  Worker worker = {*linear.team, &call.phase};
  worker.share_products<Kernel>(linear.rows, &linear.weight, 1, [&](int, int64_t panel, int64_t panels) {
    multiply<Kernel>((const typename Kernel::Input *)linear.x, linear.rows, *linear.weight, panel, panels, target);
  });
}

EXPORT void millrace_linear(const Linear *linear) {
  LinearCall call = {*linear, {0, 0}};
  const Team &team = *linear->team;
  team.parallel(team.pairing ? linear_part<Pairing> : linear_part<Widening>, &call, (unsigned)team.threads, 0);
}

struct Layer {
  const float *attention_norm;  // [hidden]
  Weight query, key, value, output;
  const float *query_norm, *key_norm;  // [size], or null
  const float *feed_norm;              // [hidden]
  Weight gate, up, down;
  int64_t window;  // of keys that a query sees, its own among them; 0: all
};

struct Model {
  int64_t layers, hidden, heads, kv_heads, size, intermediate;  // `size` is that of a head
  float epsilon, scaling;
  const float *final_norm;
  Weight head;
  const Layer *layer;
};

static const int PHASES_OF_LAYER = 13, PHASES = 4;  // at most, of each layer and of a whole step besides

// Consecutive tokens of one sequence. Its keys are [kv_heads, capacity, size] at keys[layer * places + place] + offset, its values alike.
struct Segment {
  int64_t first, tokens;  // in the step
  int64_t start;          // position of the first one
  int64_t place, offset, capacity;
};

// Tokens of a segment that attend together.
struct Together {
  int64_t segment, first, tokens;  // `first` counts from the segment's first
};

struct Step {
  const Team *team;
  const Model *model;
  int64_t begin, end;  // layers that are computed; the head too when there are samples
  int64_t tokens, segments, places, samples;
  const Segment *segment;
  bf16 *const *keys, *const *values;  // [layers, places]
  const int64_t *sampled;             // [samples]: the tokens whose logits are wanted
  float *x;                           // [tokens, hidden]: embeddings, or what the layers before `begin` made of them; becomes that of `end`
  const float *cosines, *sines;       // [tokens, size]
  float *normal;                      // [tokens, hidden]
  float *query, *key, *value;         // [tokens, heads * size], [tokens, kv_heads * size] twice
  float *attended;                    // [tokens, heads * size]
  float *gate, *up;                   // [tokens, intermediate]
  bf16 *narrow;                       // [tokens, the widest input of any product], for `Pairing`
  float *logits;                      // [samples, vocabulary]
  Phase *phases;                      // layers * PHASES_OF_LAYER + PHASES
  Together *together;                 // [tokens]
  float *found;                       // [tokens, heads, blocks, size + FOUND], when each block of keys is a piece of work, else null
  int64_t blocks;                     // of the longest context, or 0
  int64_t pieces, most_together;      // zero at first
};

static void normalize(const float *x, const float *weight, int64_t size, float epsilon, float *out) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 16) squares = _mm512_fmadd_ps(_mm512_loadu_ps(x + d), _mm512_loadu_ps(x + d), squares);
  const __m512 scale = _mm512_set1_ps(1.f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + epsilon));
  for (int64_t d = 0; d < size; d += 16)
    _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + d), scale), _mm512_loadu_ps(weight + d)));
}

// The rotation of transformers' rotate_half: dimension d meets d + size / 2.
static void rotate(float *head, const float *cosine, const float *sine, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t d = 0; d < half; d += 16) {
    const __m512 a = _mm512_loadu_ps(head + d), b = _mm512_loadu_ps(head + half + d);
    _mm512_storeu_ps(head + d, _mm512_fnmadd_ps(b, _mm512_loadu_ps(sine + d), _mm512_mul_ps(a, _mm512_loadu_ps(cosine + d))));
    _mm512_storeu_ps(head + half + d,
                     _mm512_fmadd_ps(a, _mm512_loadu_ps(sine + half + d), _mm512_mul_ps(b, _mm512_loadu_ps(cosine + half + d))));
  }
}

static void store(const float *head, int64_t size, bf16 *out) {
  for (int64_t d = 0; d < size; d += 16) _mm256_storeu_si256((__m256i *)(out + d), narrowed(_mm512_loadu_ps(head + d)));
}

// Queries that go through the blocks of one key-value head together.
struct Bundle {
  Query queries[BUNDLE];
  int64_t row[BUNDLE];  // of queries [tokens * heads]
  int64_t count, begin, end;  // and the keys that any of them sees
  const bf16 *keys, *values;
};

// One thread's part of a step.
template <class Kernel> struct Walk : Worker {
  const Step &step;
  const Model &model;

  void norm(const float *weight) {
    share((step.tokens + 3) / 4, [&](int64_t i) {
      for (int64_t t = 4 * i; t < 4 * i + 4 && t < step.tokens; t++)
        normalize(step.x + t * model.hidden, weight, model.hidden, model.epsilon, step.normal + t * model.hidden);
    });
  }

  // The rows as the kernel wants them.
  const typename Kernel::Input *prepared(const float *x, int64_t rows, int64_t inputs) {
    if constexpr (sizeof(typename Kernel::Input) == sizeof(float)) {
      return x;
    } else {
      share_range(rows * inputs, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += 16) _mm256_storeu_si256((__m256i *)(step.narrow + i), narrowed(_mm512_loadu_ps(x + i)));
      });
      return step.narrow;
    }
  }

  void times(const float *x, int64_t rows, const Weight &weight, Effect effect, float *out) {
    const auto *input = prepared(x, rows, weight.inputs);
    const Weight *weights[] = {&weight};
    this->template share_products<Kernel>(rows, weights, 1, [&](int, int64_t panel, int64_t panels) {
      multiply<Kernel>(input, rows, weight, panel, panels, {effect, out, weight.outputs});
    });
  }

  void project(const Layer &layer) {
    const auto *input = prepared(step.normal, step.tokens, model.hidden);
    const Weight *weights[] = {&layer.query, &layer.key, &layer.value};
    float *out[] = {step.query, step.key, step.value};
    this->template share_products<Kernel>(step.tokens, weights, 3, [&](int w, int64_t panel, int64_t panels) {
      multiply<Kernel>(input, step.tokens, *weights[w], panel, panels, {STORE, out[w], weights[w]->outputs});
    });
  }

  // Turns queries and keys by their positions; keys and values go to the cache.
  void place(const Layer &layer, int64_t index) {
    share(step.pieces, [&](int64_t i) {
      const Together &group = step.together[i];
      const Segment &segment = step.segment[group.segment];
      for (int64_t t = group.first; t < group.first + group.tokens; t++)
        place(layer, segment, cache(step.keys, index, segment), cache(step.values, index, segment), t);
    });
  }

  bf16 *cache(bf16 *const *places, int64_t index, const Segment &segment) const {
    return places[index * step.places + segment.place] + segment.offset;
  }

  void place(const Layer &layer, const Segment &segment, bf16 *keys, bf16 *values, int64_t t) const {
    const int64_t size = model.size, token = segment.first + t, position = segment.start + t;
    const float *cosine = step.cosines + token * size, *sine = step.sines + token * size;
    for (int64_t h = 0; h < model.heads; h++) {
      float *query = step.query + (token * model.heads + h) * size;
      if (layer.query_norm) normalize(query, layer.query_norm, size, model.epsilon, query);
      rotate(query, cosine, sine, size);
      for (int64_t d = 0; d < size; d += 16) _mm512_storeu_ps(query + d, _mm512_mul_ps(_mm512_loadu_ps(query + d), _mm512_set1_ps(model.scaling)));
    }
    for (int64_t h = 0; h < model.kv_heads; h++) {
      float *key = step.key + (token * model.kv_heads + h) * size;
      if (layer.key_norm) normalize(key, layer.key_norm, size, model.epsilon, key);
      rotate(key, cosine, sine, size);
      store(key, size, keys + (h * segment.capacity + position) * size);
      store(step.value + (token * model.kv_heads + h) * size, size, values + (h * segment.capacity + position) * size);
    }
  }

  // The i-th bundle of queries, and of which keys.
  Bundle bundle(const Layer &layer, int64_t index, int64_t i) const {
    const int64_t sharing = model.heads / model.kv_heads, bundles = bundles_of_a_head(), head = i / bundles % model.kv_heads;
    const Together &group = step.together[i / bundles / model.kv_heads];
    const Segment &segment = step.segment[group.segment];
    const int64_t skipped = head * segment.capacity * model.size;
    Bundle bundle = {{}, {}, 0, INT64_MAX, 0, cache(step.keys, index, segment) + skipped, cache(step.values, index, segment) + skipped};
    for (int64_t q = i % bundles * BUNDLE; q < group.tokens * sharing && bundle.count < BUNDLE; q++) {
      const int64_t t = group.first + q / sharing, end = segment.start + t + 1;
      const int64_t row = (segment.first + t) * model.heads + head * sharing + q % sharing;
      const Query query = {step.query + row * model.size, layer.window && end > layer.window ? end - layer.window : 0, end};
      bundle.begin = query.begin < bundle.begin ? query.begin : bundle.begin;
      bundle.end = end;
      bundle.queries[bundle.count] = query;
      bundle.row[bundle.count++] = row;
    }
    return bundle;
  }

  // Of a group's queries on one key-value head.
  int64_t bundles_of_a_head() const { return (step.most_together * (model.heads / model.kv_heads) + BUNDLE - 1) / BUNDLE; }

  void attend_block(const Bundle &bundle, int64_t block, const Found *found) const {
    for (int64_t q = 0; q < bundle.count; q += MOST_QUERIES) {
      const int64_t count = bundle.count - q < MOST_QUERIES ? bundle.count - q : MOST_QUERIES;
      ATTEND[count - 1](bundle.queries + q, bundle.keys, bundle.values, model.size, block * BLOCK, found + q);
    }
  }

  Found kept(int64_t row, int64_t block) const {
    return {step.found + (row * step.blocks + block) * Found::room(model.size), model.size};
  }

  void attention(const Layer &layer, int64_t index) {
    const int64_t bundles = step.pieces * model.kv_heads * bundles_of_a_head();
    // Of a few tokens every block is a piece: one long context may be all that there is to do.
    if (step.blocks)
      share(bundles * step.blocks, [&](int64_t i) {
        const Bundle bundle = this->bundle(layer, index, i / step.blocks);
        const int64_t block = i % step.blocks;
        if (block * BLOCK >= bundle.end || (block + 1) * BLOCK <= bundle.begin) return;
        Found found[BUNDLE];
        for (int64_t q = 0; q < bundle.count; q++) found[q] = kept(bundle.row[q], block);
        attend_block(bundle, block, found);
      });
    share(bundles, [&](int64_t i) {
      const Bundle bundle = this->bundle(layer, index, i);
      float room[2][BUNDLE][Found::room(LARGEST_HEAD)];
      Found all[BUNDLE], found[BUNDLE];
      for (int64_t q = 0; q < bundle.count; q++) {
        all[q] = {room[0][q], model.size}, found[q] = {room[1][q], model.size};
        all[q].clear();
      }
      for (int64_t block = bundle.begin / BLOCK; block * BLOCK < bundle.end; block++) {
        if (!step.blocks) attend_block(bundle, block, found);
        for (int64_t q = 0; q < bundle.count; q++) all[q].add(step.blocks ? kept(bundle.row[q], block) : found[q]);
      }
      for (int64_t q = 0; q < bundle.count; q++) all[q].write(step.attended + bundle.row[q] * model.size);
    });
  }

  void feed(const Layer &layer) {
    const auto *input = prepared(step.normal, step.tokens, model.hidden);
    const Weight *weights[] = {&layer.gate};
    const int64_t width = model.intermediate;
    // The same columns of both, and at once what becomes of them.
    this->template share_products<Kernel>(step.tokens, weights, 1, [&](int, int64_t panel, int64_t panels) {
      multiply<Kernel>(input, step.tokens, layer.gate, panel, panels, {STORE, step.gate, width});
      multiply<Kernel>(input, step.tokens, layer.up, panel, panels, {STORE, step.up, width});
      for (int64_t t = 0; t < step.tokens; t++)
        for (int64_t d = panel * 16; d < (panel + panels) * 16; d += 16) {
          float *gate = step.gate + t * width + d;
          _mm512_storeu_ps(gate, _mm512_mul_ps(silu(_mm512_loadu_ps(gate)), _mm512_loadu_ps(step.up + t * width + d)));
        }
    });
    times(step.gate, step.tokens, layer.down, ADD, step.x);
  }

  void run() {
    for (int64_t index = step.begin; index < step.end; index++) {
      const Layer &layer = model.layer[index];
      norm(layer.attention_norm);
      project(layer);
      place(layer, index);
      attention(layer, index);
      times(step.attended, step.tokens, layer.output, ADD, step.x);
      norm(layer.feed_norm);
      feed(layer);
    }
    share(step.samples, [&](int64_t i) {
      normalize(step.x + step.sampled[i] * model.hidden, model.final_norm, model.hidden, model.epsilon, step.normal + i * model.hidden);
    });
    if (step.samples) times(step.normal, step.samples, model.head, STORE, step.logits);
  }
};

template <class Kernel> static void walk(Step &step) {
  Walk<Kernel> walk = {{*step.team, step.phases}, step, *step.model};
  walk.run();
}

static void step_part(void *argument) {
  Step &step = *(Step *)argument;
  step.team->pairing ? walk<Pairing>(step) : walk<Widening>(step);
}

EXPORT void millrace_step(Step *step) {
  const int64_t sharing = step->model->heads / step->model->kv_heads;
  for (int64_t s = 0; s < step->segments; s++) {
    const int64_t tokens = step->segment[s].tokens;
    // A prompt's neighbouring tokens see nearly the same keys; together they make full use of each.
    const int64_t group = sharing < BUNDLE ? BUNDLE / sharing : 1;
    for (int64_t t = 0; t < tokens; t += group) {
      const Together together = {s, t, tokens - t < group ? tokens - t : group};
      step->together[step->pieces++] = together;
      if (together.tokens > step->most_together) step->most_together = together.tokens;
    }
  }
  step->team->parallel(step_part, step, (unsigned)step->team->threads, 0);
}

// Whether the caller has the same structures and reckons with the same numbers: one that was built from other sources would be handed too
// little room.
EXPORT int64_t millrace_agrees(const int64_t *layout, int64_t count) {
  static const int64_t own[] = {sizeof(Team),  sizeof(Weight),   sizeof(Linear), sizeof(Layer), sizeof(Model),   sizeof(Segment),
                                sizeof(Step), sizeof(Together), sizeof(Phase),  BLOCK,  FOUND,  PHASES_OF_LAYER, PHASES};
  return count * sizeof(int64_t) == sizeof own && memcmp(layout, own, sizeof own) == 0;
}
