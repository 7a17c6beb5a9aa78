/* The steps of LAMB and LARS, each in two passes over the layers, without temporaries.

   The first pass moves LAMB's averages and sums the squares that the trust ratios are made of; the
   second, given the ratios, makes a layer's direction again from the averages and applies it. Both
   also yield the sums of trustlens/kernels/sums.py where these are asked for: what they write to
   the tensors does not depend on that.

   Elements are float32. Sums are float32 over a vector lane of a block, and float64 from there on;
   those that float32 cannot hold are made again in float64. */
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* a product is rounded, whoever else uses it */
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chunks.h"

enum { LAMB_FIRST, LAMB_SECOND, LARS_FIRST, LARS_SECOND, GRADIENTS };
enum { NO_DEBIAS, IN_DIRECTION, IN_RATE, FIRST_IN_RATE };
enum { ABOVE = SUMS, BELOW, COLUMNS }; /* the squares of the ratio's norms */
#define ENLARGED 0x1p50f
#define WEIGHT_ENLARGED 0x1p30f /* what moves is below 2**25 times its update */

/* Where a layer's tensors lie; 0 for what it does not have. */
typedef struct {
    float *weight;
    const float *grad;
    float *momentum, *variance, *step, *ratio;
    int64_t size;
} Layer;

/* A group's options; `kept` is what a decay that is applied first leaves of the weights. */
typedef struct {
    double rate, beta1, beta2, epsilon, decay, kept, divisor;
    int32_t debias, decays_inside, ratio_before_decay, ratio_of_sum;
} Options;

/* The numbers of one layer's step, in float32 as torch has them. Both terms of the denominator
   contain 1 - β₁ᵗ where the direction is debiased. */
typedef struct {
    float rate, beta1, share1, beta2, share2, epsilon, decay, kept, divisor;
    float of_root, added, inverse_share, variance_share, rate_factor, ratio;
    int decays_inside, ratio_before_decay, ratio_of_sum;
} Numbers;

/* How a chunk is gone over: constants wherever these are called. */
typedef struct {
    int pass;
    int measures; /* whether the recorded sums are made */
    int again; /* only sums, in float64 throughout: nothing is moved */
} Way;

/* What the elements make, in lanes. */
typedef struct {
    vec sum[COLUMNS]; /* of a block */
    half exact[COLUMNS];
    ivec of_weight, of_direction; /* all bits of w, and of what d is 0 without: m or g */
    ivec nonfinite, zero, swallowed, most_grad;
    ivec most_update, most_enlarged; /* as measure_update has them */
} Lanes;

static inline __attribute__((always_inline)) void add(Lanes *s, Way way, int sum, vec a, vec b) {
    if (way.again) add_exactly(&s->exact[sum], a, b);
    else s->sum[sum] = plus_product(s->sum[sum], a, b);
}

static inline __attribute__((always_inline)) void measure_grad(
    vec w, vec g, ivec there, Way way, Lanes *s) {
    add(s, way, GRAD_SQUARES, g, g);
    if (way.again) s->nonfinite += ~(is_finite(w) & is_finite(g)) & there; /* always: is_lost */
    s->zero += (g == 0) & there;
    s->most_grad = higher(s->most_grad, magnitude(g));
}

/* Sums what was applied. (It cannot be made again: the weights are overwritten.) Enlarged, so that
   float32 can square it, unless it is too large; returns 1 if it is that or 0 somewhere. */
static inline __attribute__((always_inline)) int measure_update(
    vec before, vec after, ivec there, Lanes *s) {
    vec update = only(there, after - before), enlarged = update * ENLARGED;
    ivec size = magnitude(enlarged);
    if (any((size == 0) | (size > bits(all(1e17f))))) {
        s->most_update = higher(s->most_update, magnitude(update));
        add_exactly(&s->exact[UPDATE_SQUARES], update, update);
        add_exactly(&s->exact[UPDATE_DOT_WEIGHT], update, before);
        return 1;
    }
    s->most_enlarged = higher(s->most_enlarged, size);
    s->sum[UPDATE_SQUARES] = plus_product(s->sum[UPDATE_SQUARES], enlarged, enlarged);
    s->sum[UPDATE_DOT_WEIGHT] =
        plus_product(s->sum[UPDATE_DOT_WEIGHT], enlarged, before * WEIGHT_ENLARGED);
    return 0;
}

/* m̂/(√v̂ + ε), and 1/√v: from the processor's estimate unless a v is 0, tiny or not finite. */
static inline __attribute__((always_inline)) vec lamb_direction(
    vec m, vec v, ivec there, const Numbers *c, vec *inverse) {
    const uint32_t least = 0x02000000, most = 0x7f7fffff; /* 9.4e-38, and the largest */
    if (any((uvec)bits(v) - least > most - least)) {
        vec root = roots(v);
        *inverse = 1 / root;
        return only(there, m / (root * c->of_root + c->added));
    }
    *inverse = inverse_root(v);
    return m / plus_product(all(c->added), v * *inverse, all(c->of_root));
}

/* Where λw is a term of what a step applies. Terms that vanish or cancel in float32 may not do so in
   float64, which therefore decides whether their sum is 0. */
static inline __attribute__((always_inline)) ivec is_decayed(vec w, const Numbers *c) {
    return mask(c->decay != 0) & (w != 0);
}

/* Whether the norms of LAMB's ratio are those of the weights, and of d + λw (else of d): these sums
   are then made once. */
static inline int ratio_has_weights(const Numbers *c) {
    return c->ratio_before_decay || c->kept == 1;
}
static inline int ratio_has_direction(const Numbers *c) {
    return c->decays_inside || c->decay == 0;
}

static inline __attribute__((always_inline)) void lamb_first(
    const Layer *l, int64_t i, const Numbers *c, ivec there, Way way, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i), inverse;
    vec m = load(l->momentum + i), v = load(l->variance + i);
    if (c->divisor != 1) g /= c->divisor;
    if (!way.again) {
        m = c->share1 < 0.5f ? plus_product(m, all(c->share1), g - m)
                             : plus_product(g, all(-c->beta1), g - m);
        v = plus_product(v * c->beta2, c->share2 * g, g);
        store(l->momentum + i, m);
        store(l->variance + i, v);
    }
    vec d = lamb_direction(m, v, there, c, &inverse);
    vec above = c->ratio_before_decay ? w : w * c->kept;
    vec below = c->decays_inside ? plus_product(d, all(c->decay), w) : d;
    add(s, way, ABOVE, above, above);
    add(s, way, BELOW, below, below);
    s->of_weight |= bits(w);
    s->of_direction |= bits(m);
    if (!way.measures) return;
    measure_grad(w, g, there, way, s);
    if (!ratio_has_weights(c)) add(s, way, WEIGHT_SQUARES, w, w);
    if (ratio_has_direction(c)) add(s, way, UNDECAYED_SQUARES, d, d);
    else {
        vec u = plus_product(d, all(c->decay), w);
        add(s, way, DIRECTION_SQUARES, u, u);
    }
    add(s, way, UNDECAYED_DOT_WEIGHT, d, w);
    add(s, way, GRAD_DOT_MOMENTUM, g, m);
    add(s, way, MOMENTUM_SQUARES, m, m);
    add(s, way, VARIANCE_SUM, v, all(c->variance_share));
    vec surprise = only(there, g * lower(all(1 / c->epsilon), inverse * c->inverse_share));
    add(s, way, SURPRISE_SUM, surprise, surprise);
}

static inline __attribute__((always_inline)) void lamb_second(
    const Layer *l, int64_t i, const Numbers *c, ivec there, Way way, Lanes *s) {
    vec w = load(l->weight + i), m = load(l->momentum + i), v = load(l->variance + i), inverse;
    vec d = lamb_direction(m, v, there, c, &inverse);
    vec u = c->decays_inside ? plus_product(d, all(c->decay), w) : d;
    vec after = plus_product(w * c->kept, all(-c->rate), u * c->rate_factor * c->ratio);
    store(l->weight + i, after);
    if (!way.measures) return;
    if (!measure_update(w, after, there, s)) return;
    vec decayed = c->decay != 0 ? plus_product(d, all(c->decay), w) : d;
    ivec still = (after - w == 0) & there, term = (m != 0) & is_finite(v);
    s->swallowed += still & (decayed != 0);
    ivec unsure = still & (decayed == 0) & (term | is_decayed(w, c));
    if (any(unsure))
        for (int k = 0; k < LANES; k++) {
            double exact = m[k] / (sqrt(v[k]) * c->of_root + c->added);
            s->swallowed[k] += unsure[k] & -(exact + (double)c->decay * w[k] != 0);
        }
}

static inline __attribute__((always_inline)) void lars_first(
    const Layer *l, int64_t i, const Numbers *c, ivec there, Way way, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i);
    vec u = plus_product(g, all(c->decay), w), below = c->ratio_of_sum ? g : u;
    add(s, way, ABOVE, w, w);
    add(s, way, BELOW, below, below);
    s->of_weight |= bits(w);
    s->of_direction |= bits(g);
    if (!way.measures) return;
    measure_grad(w, g, there, way, s);
    vec decayed = c->decay != 0 ? u : g;
    add(s, way, WEIGHT_SQUARES, w, w);
    add(s, way, DIRECTION_SQUARES, decayed, decayed);
    add(s, way, UNDECAYED_SQUARES, g, g);
    add(s, way, UNDECAYED_DOT_WEIGHT, g, w);
}

static inline __attribute__((always_inline)) void lars_second(
    const Layer *l, int64_t i, const Numbers *c, ivec there, Way way, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i);
    vec u = plus_product(g, all(c->decay), w), b = u * c->ratio;
    if (l->momentum) {
        b = plus_product(b, load(l->momentum + i), all(c->beta1));
        store(l->momentum + i, b);
    }
    vec after = plus_product(w, all(-c->rate), b);
    store(l->weight + i, after);
    if (!way.measures) return;
    if (measure_update(w, after, there, s)) {
        ivec still = (after - w == 0) & there;
        s->swallowed += still & (u != 0);
        ivec unsure = still & (u == 0) & ((g != 0) | is_decayed(w, c));
        if (any(unsure))
            for (int k = 0; k < LANES; k++)
                s->swallowed[k] += unsure[k] & -(g[k] + (double)c->decay * w[k] != 0);
    }
    add_exactly(&s->exact[GRAD_DOT_MOMENTUM], g, b);
    add_exactly(&s->exact[MOMENTUM_SQUARES], b, b);
}

static inline __attribute__((always_inline)) void step_lanes(
    const Layer *l, int64_t i, const Numbers *c, ivec there, Way way, Lanes *s) {
    switch (way.pass) {
    case LAMB_FIRST: lamb_first(l, i, c, there, way, s); break;
    case LAMB_SECOND: lamb_second(l, i, c, there, way, s); break;
    case LARS_FIRST: lars_first(l, i, c, there, way, s); break;
    case LARS_SECOND: lars_second(l, i, c, there, way, s); break;
    default: {
        vec g = load(l->grad + i);
        add_exactly(&s->exact[ABOVE], g, g);
    }
    }
}

/* A layer's last elements, too few for a vector: in copies, with zeros behind them. */
static inline __attribute__((always_inline)) void step_rest(
    const Layer *l, int64_t start, int n, const Numbers *c, Way way, Lanes *s) {
    float copies[4][LANES] = {{0}};
    float *lie[] = {l->weight, l->momentum, l->variance, (float *)l->grad};
    Layer rest = {copies[0], copies[3], l->momentum ? copies[1] : 0, copies[2], 0, 0, 0};
    ivec there;
    for (int i = 0; i < LANES; i++) there[i] = i < n ? -1 : 0;
    for (int k = 0; k < 4; k++) if (lie[k]) memcpy(copies[k], lie[k] + start, 4 * (size_t)n);
    step_lanes(&rest, 0, c, there, way, s);
    for (int k = 0; k < 3; k++) if (lie[k]) memcpy(lie[k] + start, copies[k], 4 * (size_t)n);
}

static inline __attribute__((always_inline)) void step_range(
    const Layer *layer, int64_t start, int64_t end, const Numbers *numbers, Way way, Lanes *s,
    double *out) {
    const Layer own = *layer, *l = &own; /* copies, which no store to a tensor can change */
    const Numbers of_own = *numbers, *c = &of_own;
    const int is_second = way.pass == LAMB_SECOND || way.pass == LARS_SECOND;
    const int first = way.measures ? 0 : SUMS, last = is_second ? SUMS : COLUMNS;
    wide total[COLUMNS] = {{0}};
    int64_t i = start;
    for (int64_t at = start; at < end; at += BLOCK) {
        const int64_t stop = end - at < BLOCK ? end : at + BLOCK;
        for (int k = first; k < last; k++) s->sum[k] = (vec){0};
        for (; i + LANES <= stop; i += LANES) step_lanes(l, i, c, ~(ivec){0}, way, s);
        if (i < stop) step_rest(l, i, (int)(stop - i), c, way, s);
        for (int k = first; k < last; k++) add_wide(&total[k], s->sum[k]);
    }
    for (int k = first; k < last; k++) {
        out[k] = across(&total[k]);
        if (k == UPDATE_SQUARES) out[k] /= (double)ENLARGED * ENLARGED;
        if (k == UPDATE_DOT_WEIGHT) out[k] /= (double)ENLARGED * WEIGHT_ENLARGED;
        for (int j = 0; j < LANES / 2; j++) out[k] += s->exact[k][j];
    }
    if (!way.measures) return;
    if (way.pass == LAMB_FIRST) {
        if (ratio_has_weights(c)) out[WEIGHT_SQUARES] = out[ABOVE];
        out[ratio_has_direction(c) ? DIRECTION_SQUARES : UNDECAYED_SQUARES] = out[BELOW];
    }
    out[NONFINITE] = count(s->nonfinite);
    out[ZERO_GRAD] = count(s->zero);
    out[SWALLOWED] = count(s->swallowed);
    out[UPDATE_MAX] = larger(largest(s->most_update), largest(s->most_enlarged) / ENLARGED);
    out[GRAD_MAX] = largest(s->most_grad);
}

/* Whether float32 could not square what was summed: too large or, unless all 0, too small. */
static int is_lost(double sum, ivec of) {
    return !(sum > 1e-33 && sum < INFINITY) && largest(magnitude((vec)of)) != 0;
}

/* The first pass over a chunk; sums that float32 cannot hold are made again. */
static inline __attribute__((always_inline)) void first_pass(
    const Layer *l, int64_t start, int64_t end, const Numbers *c, Way way, double *out) {
    Lanes s = {0}, exact = {0};
    double again[COLUMNS];
    step_range(l, start, end, c, way, &s, out);
    const ivec w = s.of_weight, d = s.of_direction, g = s.most_grad, u = c->decay != 0 ? w | d : d;
    const int ratio = is_lost(out[ABOVE], w) || is_lost(out[BELOW], u), is_lamb = !way.pass;
    const int sums =
        way.measures &&
        (is_lost(out[WEIGHT_SQUARES], w) || is_lost(out[GRAD_SQUARES], g) ||
         is_lost(out[DIRECTION_SQUARES], u) || is_lost(out[UNDECAYED_SQUARES], d) ||
         (is_lamb && is_lost(out[MOMENTUM_SQUARES], d)) ||
         (is_lamb && is_lost(out[SURPRISE_SUM], g)) || !(out[VARIANCE_SUM] < INFINITY));
    if (!ratio && !sums) return;
    way.again = 1;
    step_range(l, start, end, c, way, &exact, again);
    if (ratio) memcpy(out + SUMS, again + SUMS, sizeof again - SUMS * sizeof *again);
    if (sums) memcpy(out, again, SUMS * sizeof *again);
}

/* Part of a layer, and what it makes. */
typedef struct {
    int64_t layer, start;
    Numbers numbers;
    double sums[COLUMNS];
} Chunk;

static void do_chunk(int pass, const Layer *layers, Chunk *chunk, int measures) {
    const Layer *l = layers + chunk->layer;
    const int64_t start = chunk->start, end = end_of_chunk(start, l->size);
    const Numbers *c = &chunk->numbers;
    double *out = chunk->sums;
    Lanes s = {0};
#define FIRST(p, m) first_pass(l, start, end, c, (Way){p, m, 0}, out)
#define SECOND(p, m) step_range(l, start, end, c, (Way){p, m, 0}, &s, out)
    switch (2 * pass + measures) {
    case 2 * LAMB_FIRST: FIRST(LAMB_FIRST, 0); break;
    case 2 * LAMB_FIRST + 1: FIRST(LAMB_FIRST, 1); break;
    case 2 * LAMB_SECOND: SECOND(LAMB_SECOND, 0); break;
    case 2 * LAMB_SECOND + 1: SECOND(LAMB_SECOND, 1); break;
    case 2 * LARS_FIRST: FIRST(LARS_FIRST, 0); break;
    case 2 * LARS_FIRST + 1: FIRST(LARS_FIRST, 1); break;
    case 2 * LARS_SECOND: SECOND(LARS_SECOND, 0); break;
    case 2 * LARS_SECOND + 1: SECOND(LARS_SECOND, 1); break;
    default: SECOND(GRADIENTS, 0);
    }
}

static Numbers numbers_of(const Options *o, double t) {
    double mean = 1, root_share = 1, rate_factor = 1;
    if (o->debias != NO_DEBIAS) {
        mean = 1 - pow(o->beta1, t);
        root_share = 1 / sqrt(1 - pow(o->beta2, t));
    }
    if (o->debias == IN_RATE) rate_factor = 1 / (mean * root_share);
    if (o->debias == FIRST_IN_RATE) rate_factor = 1 / mean;
    if (o->debias != IN_DIRECTION) mean = root_share = 1;
    return (Numbers){
        .rate = (float)o->rate, .beta1 = (float)o->beta1, .share1 = (float)(1 - o->beta1),
        .beta2 = (float)o->beta2, .share2 = (float)(1 - o->beta2), .epsilon = (float)o->epsilon,
        .decay = (float)o->decay, .kept = (float)o->kept, .divisor = (float)o->divisor,
        .of_root = (float)(root_share * mean), .added = (float)(o->epsilon * mean),
        .inverse_share = (float)(1 / root_share),
        .variance_share = (float)(root_share * root_share), .rate_factor = (float)rate_factor,
        .ratio = 1, .decays_inside = o->decays_inside, .ratio_before_decay = o->ratio_before_decay,
        .ratio_of_sum = o->ratio_of_sum};
}

/* Cuts n layers into chunks, each with its numbers. */
static void cut(const Layer *layers, int64_t n, const Options *o, const double *ratios,
                Chunk *chunks) {
    Numbers c = {0};
    float t = -1;
    int64_t i = 0;
    for (int64_t k = 0; k < n; k++) {
        const float own = layers[k].step ? *layers[k].step : 0;
        if (own != t) c = numbers_of(o, own); /* the layers' counts are mostly the same */
        t = own;
        if (ratios) *layers[k].ratio = c.ratio = (float)ratios[k];
        for (int64_t start = 0; start < layers[k].size; start += CHUNK, i++) {
            chunks[i].layer = k;
            chunks[i].start = start;
            chunks[i].numbers = c;
        }
    }
}

/* Does one pass over n layers by so many threads; returns 0 if there is no memory for it.

   A first pass gives `squares`, (n, 2): of the norms in the ratio, above and below the line (that
   over the gradients: of theirs, first). A second pass takes `ratios`, (n). Both add to `sums`,
   (n, SUMS), unless that is 0. */
int trustlens_pass(int pass, const Layer *layers, int64_t n, const Options *options, int threads,
                   double *squares, const double *ratios, double *sums) {
    int64_t count = 0, i;
    for (int64_t k = 0; k < n; k++) count += chunks_in(layers[k].size);
    Chunk *chunks = malloc(((size_t)count + 1) * sizeof *chunks);
    if (!chunks) return 0;
    if (pass == LAMB_FIRST) for (int64_t k = 0; k < n; k++) *layers[k].step += 1;
    cut(layers, n, options, ratios, chunks);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i = 0; i < count; i++) do_chunk(pass, layers, &chunks[i], sums != 0);
    /* Always in the same order: nothing depends on the threads. */
    for (i = 0; i < count; i++) {
        const Chunk *c = &chunks[i];
        if (sums) add_sums(sums + c->layer * SUMS, c->sums);
        if (!squares) continue;
        squares[2 * c->layer] += c->sums[ABOVE];
        squares[2 * c->layer + 1] += c->sums[BELOW];
    }
    free(chunks);
    return 1;
}
