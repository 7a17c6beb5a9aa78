/* The steps of LAMB and LARS. Each takes two passes over the layers and needs no temporary tensors.

   The first pass updates LAMB's moving averages and computes the squared norms that the trust
   ratios need. The second pass takes the ratios, computes each layer's direction again, and applies
   it. On request, both passes also compute the sums of trustlens/kernels/sums.py. This does not
   change the step.

   Elements are float32. Within a block, each vector lane is summed in float32; the results are
   added in float64. Sums that leave float32's range are computed again in float64. */
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* products are rounded in the same way everywhere */
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chunks.h"

enum { LAMB_FIRST, LAMB_SECOND, LARS_FIRST, LARS_SECOND, GRADIENTS };
enum { NO_DEBIAS, IN_DIRECTION, IN_RATE, FIRST_IN_RATE };
enum { NUMERATOR = SUMS, DENOMINATOR, COLUMNS }; /* the squared norms that the trust ratio needs */
/* `measure_update` multiplies updates by SCALE and weights by WEIGHT_SCALE. A weight that changes
   is below 2**25 times its update, so that the scaled products do not overflow. */
#define SCALE 0x1p50f
#define WEIGHT_SCALE 0x1p30f

/* Addresses of a layer's tensors; 0 for a missing tensor. */
typedef struct {
    float *weight;
    const float *grad;
    float *momentum, *variance, *step, *ratio;
    int64_t size;
} Layer;

/* The options of a parameter group. A decay before the step multiplies the weights by `kept`. */
typedef struct {
    double rate, beta1, beta2, epsilon, decay, kept, divisor;
    int32_t debias, decays_inside, ratio_before_decay, ratio_of_sum;
} Options;

/* The coefficients of one layer's step, in float32 as in PyTorch. LAMB's direction is
   d = m / (root_factor·√v + epsilon_term). If it is debiased, both terms of the denominator contain
   the factor 1 - β₁ᵗ. */
typedef struct {
    float rate, beta1, share1, beta2, share2, epsilon, decay, kept, divisor;
    float root_factor, epsilon_term, inverse_share, variance_share, rate_factor, ratio;
    int decays_inside, ratio_before_decay, ratio_of_sum;
} Coefficients;

/* How a chunk is processed. Each call has constants here, so that the compiler removes branches. */
typedef struct {
    int pass; /* LAMB_FIRST to GRADIENTS */
    int measures; /* compute the recorded sums */
    int exact; /* sum in float64, and write to no tensor */
} Mode;

/* The results in each vector lane. Counts are negative: -1 for each counted element. */
typedef struct {
    vec sum[COLUMNS]; /* float32 sums of one block */
    half exact[COLUMNS]; /* float64 sums of a whole chunk */
    ivec of_weight, of_direction; /* OR of the bits of all w, and of all m (LAMB) or g (LARS) */
    ivec nonfinite, zero, swallowed, max_grad;
    ivec max_update, max_scaled; /* bits of the largest unscaled and scaled |Δw| */
} Lanes;

static inline __attribute__((always_inline)) void add(Lanes *s, Mode mode, int sum, vec a, vec b) {
    if (mode.exact) add_exactly(&s->exact[sum], a, b);
    else s->sum[sum] = add_product(s->sum[sum], a, b);
}

static inline __attribute__((always_inline)) void measure_grad(
    vec w, vec g, ivec valid, Mode mode, Lanes *s) {
    add(s, mode, GRAD_SQUARES, g, g);
    /* An element that is not finite makes a sum infinite or NaN: `exact` mode always follows. */
    if (mode.exact) s->nonfinite += ~(is_finite(w) & is_finite(g)) & valid;
    s->zero += (g == 0) & valid;
    s->max_grad = max_bits(s->max_grad, magnitude(g));
}

/* Adds the terms of the sums of the update. They cannot be computed again, because the step
   overwrites the weights. The update is scaled up, so that its square does not underflow in
   float32. If the scaled square would overflow, or an element of the update is 0, the terms are
   added in float64 without scaling. Returns 1 in this case, else 0. */
static inline __attribute__((always_inline)) int measure_update(
    vec before, vec after, ivec valid, Lanes *s) {
    vec update = masked(valid, after - before), scaled = update * SCALE;
    ivec size = magnitude(scaled);
    if (any_set((size == 0) | (size > bits(broadcast(1e17f))))) {
        s->max_update = max_bits(s->max_update, magnitude(update));
        add_exactly(&s->exact[UPDATE_SQUARES], update, update);
        add_exactly(&s->exact[UPDATE_DOT_WEIGHT], update, before);
        return 1;
    }
    s->max_scaled = max_bits(s->max_scaled, size);
    s->sum[UPDATE_SQUARES] = add_product(s->sum[UPDATE_SQUARES], scaled, scaled);
    s->sum[UPDATE_DOT_WEIGHT] =
        add_product(s->sum[UPDATE_DOT_WEIGHT], scaled, before * WEIGHT_SCALE);
    return 0;
}

/* Returns m̂/(√v̂ + ε), and sets `inverse` to 1/√v. The root is refined from the processor's
   estimate. If any v is 0, tiny or not finite, a slower exact root is used. */
static inline __attribute__((always_inline)) vec lamb_direction(
    vec m, vec v, ivec valid, const Coefficients *c, vec *inverse) {
    const uint32_t least = 0x02000000, most = 0x7f7fffff; /* 9.4e-38 and the largest float32 */
    if (any_set((uvec)bits(v) - least > most - least)) {
        vec root = square_root(v);
        *inverse = 1 / root;
        return masked(valid, m / (root * c->root_factor + c->epsilon_term));
    }
    *inverse = inverse_root(v);
    return m / add_product(broadcast(c->epsilon_term), v * *inverse, broadcast(c->root_factor));
}

/* Returns the lanes in which the term λw of d + λw is not 0, even if λw underflows in float32. */
static inline __attribute__((always_inline)) ivec is_decayed(vec w, const Coefficients *c) {
    return mask(c->decay != 0) & (w != 0);
}

/* The next two functions say which recorded sums LAMB's trust ratio needs anyway. These sums are
   computed only once. The first function returns whether the numerator of the ratio is ‖w‖. The
   second returns whether the denominator is ‖d + λw‖; if not, the denominator is ‖d‖. */
static inline int ratio_has_weights(const Coefficients *c) {
    return c->ratio_before_decay || c->kept == 1;
}
static inline int ratio_has_direction(const Coefficients *c) {
    return c->decays_inside || c->decay == 0;
}

static inline __attribute__((always_inline)) void lamb_first(
    const Layer *l, int64_t i, const Coefficients *c, ivec valid, Mode mode, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i), inverse;
    vec m = load(l->momentum + i), v = load(l->variance + i);
    if (c->divisor != 1) g /= c->divisor;
    if (!mode.exact) {
        m = c->share1 < 0.5f ? add_product(m, broadcast(c->share1), g - m)
                             : add_product(g, broadcast(-c->beta1), g - m);
        v = add_product(v * c->beta2, c->share2 * g, g);
        store(l->momentum + i, m);
        store(l->variance + i, v);
    }
    vec d = lamb_direction(m, v, valid, c, &inverse);
    vec numerator = c->ratio_before_decay ? w : w * c->kept;
    vec denominator = c->decays_inside ? add_product(d, broadcast(c->decay), w) : d;
    add(s, mode, NUMERATOR, numerator, numerator);
    add(s, mode, DENOMINATOR, denominator, denominator);
    s->of_weight |= bits(w);
    s->of_direction |= bits(m);
    if (!mode.measures) return;
    measure_grad(w, g, valid, mode, s);
    if (!ratio_has_weights(c)) add(s, mode, WEIGHT_SQUARES, w, w);
    if (ratio_has_direction(c)) add(s, mode, UNDECAYED_SQUARES, d, d);
    else {
        vec u = add_product(d, broadcast(c->decay), w);
        add(s, mode, DIRECTION_SQUARES, u, u);
    }
    add(s, mode, UNDECAYED_DOT_WEIGHT, d, w);
    add(s, mode, GRAD_DOT_MOMENTUM, g, m);
    add(s, mode, MOMENTUM_SQUARES, m, m);
    add(s, mode, VARIANCE_SUM, v, broadcast(c->variance_share));
    vec inverse_den = minimum(broadcast(1 / c->epsilon), inverse * c->inverse_share);
    vec surprise = masked(valid, g * inverse_den);
    add(s, mode, SURPRISE_SUM, surprise, surprise);
}

static inline __attribute__((always_inline)) void lamb_second(
    const Layer *l, int64_t i, const Coefficients *c, ivec valid, Mode mode, Lanes *s) {
    vec w = load(l->weight + i), m = load(l->momentum + i), v = load(l->variance + i), inverse;
    vec d = lamb_direction(m, v, valid, c, &inverse);
    vec u = c->decays_inside ? add_product(d, broadcast(c->decay), w) : d;
    vec after = add_product(w * c->kept, broadcast(-c->rate), u * c->rate_factor * c->ratio);
    store(l->weight + i, after);
    if (!mode.measures) return;
    if (!measure_update(w, after, valid, s)) return;
    vec decayed = c->decay != 0 ? add_product(d, broadcast(c->decay), w) : d;
    ivec still = (after - w == 0) & valid, term = (m != 0) & is_finite(v);
    s->swallowed += still & (decayed != 0);
    ivec unsure = still & (decayed == 0) & (term | is_decayed(w, c));
    if (any_set(unsure))
        for (int k = 0; k < LANES; k++) {
            double exact = m[k] / (sqrt(v[k]) * c->root_factor + c->epsilon_term);
            s->swallowed[k] += unsure[k] & -(exact + (double)c->decay * w[k] != 0);
        }
}

static inline __attribute__((always_inline)) void lars_first(
    const Layer *l, int64_t i, const Coefficients *c, ivec valid, Mode mode, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i);
    vec u = add_product(g, broadcast(c->decay), w), denominator = c->ratio_of_sum ? g : u;
    add(s, mode, NUMERATOR, w, w);
    add(s, mode, DENOMINATOR, denominator, denominator);
    s->of_weight |= bits(w);
    s->of_direction |= bits(g);
    if (!mode.measures) return;
    measure_grad(w, g, valid, mode, s);
    vec decayed = c->decay != 0 ? u : g;
    add(s, mode, WEIGHT_SQUARES, w, w);
    add(s, mode, DIRECTION_SQUARES, decayed, decayed);
    add(s, mode, UNDECAYED_SQUARES, g, g);
    add(s, mode, UNDECAYED_DOT_WEIGHT, g, w);
}

static inline __attribute__((always_inline)) void lars_second(
    const Layer *l, int64_t i, const Coefficients *c, ivec valid, Mode mode, Lanes *s) {
    vec w = load(l->weight + i), g = load(l->grad + i);
    vec u = add_product(g, broadcast(c->decay), w), b = u * c->ratio;
    if (l->momentum) {
        b = add_product(b, load(l->momentum + i), broadcast(c->beta1));
        store(l->momentum + i, b);
    }
    vec after = add_product(w, broadcast(-c->rate), b);
    store(l->weight + i, after);
    if (!mode.measures) return;
    if (measure_update(w, after, valid, s)) {
        ivec still = (after - w == 0) & valid;
        s->swallowed += still & (u != 0);
        ivec unsure = still & (u == 0) & ((g != 0) | is_decayed(w, c));
        if (any_set(unsure))
            for (int k = 0; k < LANES; k++)
                s->swallowed[k] += unsure[k] & -(g[k] + (double)c->decay * w[k] != 0);
    }
    add_exactly(&s->exact[GRAD_DOT_MOMENTUM], g, b);
    add_exactly(&s->exact[MOMENTUM_SQUARES], b, b);
}

static inline __attribute__((always_inline)) void step_lanes(
    const Layer *l, int64_t i, const Coefficients *c, ivec valid, Mode mode, Lanes *s) {
    switch (mode.pass) {
    case LAMB_FIRST: lamb_first(l, i, c, valid, mode, s); break;
    case LAMB_SECOND: lamb_second(l, i, c, valid, mode, s); break;
    case LARS_FIRST: lars_first(l, i, c, valid, mode, s); break;
    case LARS_SECOND: lars_second(l, i, c, valid, mode, s); break;
    default: {
        vec g = load(l->grad + i);
        add_exactly(&s->exact[NUMERATOR], g, g);
    }
    }
}

/* Processes the last n elements of a layer, which do not fill a vector. It steps copies that are
   padded with zeros, and then copies the results back. */
static inline __attribute__((always_inline)) void step_rest(
    const Layer *l, int64_t start, int n, const Coefficients *c, Mode mode, Lanes *s) {
    float copies[4][LANES] = {{0}};
    float *tensors[] = {l->weight, l->momentum, l->variance, (float *)l->grad};
    Layer rest = {copies[0], copies[3], l->momentum ? copies[1] : 0, copies[2], 0, 0, 0};
    ivec valid;
    for (int i = 0; i < LANES; i++) valid[i] = i < n ? -1 : 0;
    const size_t bytes = 4 * (size_t)n;
    for (int k = 0; k < 4; k++) if (tensors[k]) memcpy(copies[k], tensors[k] + start, bytes);
    step_lanes(&rest, 0, c, valid, mode, s);
    for (int k = 0; k < 3; k++) if (tensors[k]) memcpy(tensors[k] + start, copies[k], bytes);
}

static inline __attribute__((always_inline)) void step_range(
    const Layer *layer, int64_t start, int64_t end, const Coefficients *coefficients, Mode mode,
    Lanes *s, double *out) {
    const Layer own = *layer, *l = &own; /* stores to tensors cannot change these local copies */
    const Coefficients of_own = *coefficients, *c = &of_own;
    const int is_second = mode.pass == LAMB_SECOND || mode.pass == LARS_SECOND;
    const int first = mode.measures ? 0 : SUMS, last = is_second ? SUMS : COLUMNS;
    wide total[COLUMNS] = {{0}};
    int64_t i = start;
    for (int64_t at = start; at < end; at += BLOCK) {
        const int64_t stop = end - at < BLOCK ? end : at + BLOCK;
        for (int k = first; k < last; k++) s->sum[k] = (vec){0};
        for (; i + LANES <= stop; i += LANES) step_lanes(l, i, c, ~(ivec){0}, mode, s);
        if (i < stop) step_rest(l, i, (int)(stop - i), c, mode, s);
        for (int k = first; k < last; k++) add_wide(&total[k], s->sum[k]);
    }
    for (int k = first; k < last; k++) {
        out[k] = sum_lanes(&total[k]);
        if (k == UPDATE_SQUARES) out[k] /= (double)SCALE * SCALE;
        if (k == UPDATE_DOT_WEIGHT) out[k] /= (double)SCALE * WEIGHT_SCALE;
        for (int j = 0; j < LANES / 2; j++) out[k] += s->exact[k][j];
    }
    if (!mode.measures) return;
    if (mode.pass == LAMB_FIRST) {
        if (ratio_has_weights(c)) out[WEIGHT_SQUARES] = out[NUMERATOR];
        out[ratio_has_direction(c) ? DIRECTION_SQUARES : UNDECAYED_SQUARES] = out[DENOMINATOR];
    }
    out[NONFINITE] = count_set(s->nonfinite);
    out[ZERO_GRAD] = count_set(s->zero);
    out[SWALLOWED] = count_set(s->swallowed);
    const double max_scaled = largest_magnitude(s->max_scaled) / SCALE;
    out[UPDATE_MAX] = larger(largest_magnitude(s->max_update), max_scaled);
    out[GRAD_MAX] = largest_magnitude(s->max_grad);
}

/* Returns whether a sum of squares is outside of float32's range: too large, or too small although
   a squared value is not 0. `of` is the OR of the bits of the squared values. */
static int is_out_of_range(double sum, ivec of) {
    return !(sum > 1e-33 && sum < INFINITY) && largest_magnitude(magnitude((vec)of)) != 0;
}

/* Does the first pass over a chunk. If sums leave float32's range, they are computed again in
   float64. */
static inline __attribute__((always_inline)) void first_pass(
    const Layer *l, int64_t start, int64_t end, const Coefficients *c, Mode mode, double *out) {
    Lanes s = {0}, exact = {0};
    double again[COLUMNS];
    step_range(l, start, end, c, mode, &s, out);
    const ivec w = s.of_weight, d = s.of_direction, g = s.max_grad, u = c->decay != 0 ? w | d : d;
    const int is_lamb = !mode.pass;
    const int ratio = is_out_of_range(out[NUMERATOR], w) || is_out_of_range(out[DENOMINATOR], u);
    const int sums =
        mode.measures &&
        (is_out_of_range(out[WEIGHT_SQUARES], w) || is_out_of_range(out[GRAD_SQUARES], g) ||
         is_out_of_range(out[DIRECTION_SQUARES], u) || is_out_of_range(out[UNDECAYED_SQUARES], d) ||
         (is_lamb && is_out_of_range(out[MOMENTUM_SQUARES], d)) ||
         (is_lamb && is_out_of_range(out[SURPRISE_SUM], g)) || !(out[VARIANCE_SUM] < INFINITY));
    if (!ratio && !sums) return;
    mode.exact = 1;
    step_range(l, start, end, c, mode, &exact, again);
    if (ratio) memcpy(out + SUMS, again + SUMS, sizeof again - SUMS * sizeof *again);
    if (sums) memcpy(out, again, SUMS * sizeof *again);
}

/* A part of a layer, the coefficients of its step, and its results. */
typedef struct {
    int64_t layer, start; /* index of the layer, and of the part's first element */
    Coefficients numbers;
    double sums[COLUMNS];
} Chunk;

static void do_chunk(int pass, const Layer *layers, Chunk *chunk, int measures) {
    const Layer *l = layers + chunk->layer;
    const int64_t start = chunk->start, end = end_of_chunk(start, l->size);
    const Coefficients *c = &chunk->numbers;
    double *out = chunk->sums;
    Lanes s = {0};
#define FIRST(p, m) first_pass(l, start, end, c, (Mode){p, m, 0}, out)
#define SECOND(p, m) step_range(l, start, end, c, (Mode){p, m, 0}, &s, out)
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

static Coefficients coefficients_of(const Options *o, double t) {
    double mean = 1, root_share = 1, rate_factor = 1;
    if (o->debias != NO_DEBIAS) {
        mean = 1 - pow(o->beta1, t);
        root_share = 1 / sqrt(1 - pow(o->beta2, t));
    }
    if (o->debias == IN_RATE) rate_factor = 1 / (mean * root_share);
    if (o->debias == FIRST_IN_RATE) rate_factor = 1 / mean;
    if (o->debias != IN_DIRECTION) mean = root_share = 1;
    return (Coefficients){
        .rate = (float)o->rate, .beta1 = (float)o->beta1, .share1 = (float)(1 - o->beta1),
        .beta2 = (float)o->beta2, .share2 = (float)(1 - o->beta2), .epsilon = (float)o->epsilon,
        .decay = (float)o->decay, .kept = (float)o->kept, .divisor = (float)o->divisor,
        .root_factor = (float)(root_share * mean), .epsilon_term = (float)(o->epsilon * mean),
        .inverse_share = (float)(1 / root_share),
        .variance_share = (float)(root_share * root_share), .rate_factor = (float)rate_factor,
        .ratio = 1, .decays_inside = o->decays_inside, .ratio_before_decay = o->ratio_before_decay,
        .ratio_of_sum = o->ratio_of_sum};
}

/* Divides n layers into chunks and computes the coefficients of each chunk. In a second pass, also
   stores the trust ratios in the optimizer's state. */
static void divide(const Layer *layers, int64_t n, const Options *o, const double *ratios,
                Chunk *chunks) {
    Coefficients c = {0};
    float t = -1;
    int64_t i = 0;
    for (int64_t k = 0; k < n; k++) {
        const float own = layers[k].step ? *layers[k].step : 0;
        if (own != t) c = coefficients_of(o, own); /* most layers have the same step count */
        t = own;
        if (ratios) *layers[k].ratio = c.ratio = (float)ratios[k];
        for (int64_t start = 0; start < layers[k].size; start += CHUNK, i++) {
            chunks[i].layer = k;
            chunks[i].start = start;
            chunks[i].numbers = c;
        }
    }
}

/* Does one pass over n layers with `threads` threads. Returns 0 if out of memory, else 1.

   A first pass adds the squared norms that the trust ratios need to `squares`, of shape (n, 2): the
   numerator in column 0, the denominator in column 1. The pass GRADIENTS adds the squared norms of
   the gradients to column 0. A second pass reads the trust ratios from `ratios`, of shape (n). If
   `sums` is not 0, first and second passes add the recorded sums to it; its shape is (n, SUMS). */
int trustlens_pass(int pass, const Layer *layers, int64_t n, const Options *options, int threads,
                   double *squares, const double *ratios, double *sums) {
    int64_t count = 0, i;
    for (int64_t k = 0; k < n; k++) count += chunks_in(layers[k].size);
    Chunk *chunks = malloc(((size_t)count + 1) * sizeof *chunks);
    if (!chunks) return 0;
    if (pass == LAMB_FIRST) for (int64_t k = 0; k < n; k++) *layers[k].step += 1;
    divide(layers, n, options, ratios, chunks);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i = 0; i < count; i++) do_chunk(pass, layers, &chunks[i], sums != 0);
    /* The chunks are added in a fixed order, so that the number of threads has no effect. */
    for (i = 0; i < count; i++) {
        const Chunk *c = &chunks[i];
        if (sums) add_sums(sums + c->layer * SUMS, c->sums);
        if (!squares) continue;
        squares[2 * c->layer] += c->sums[NUMERATOR];
        squares[2 * c->layer + 1] += c->sums[DENOMINATOR];
    }
    free(chunks);
    return 1;
}
