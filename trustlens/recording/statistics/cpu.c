/* Computes every sum of trustlens/kernels/sums.py in one pass over a layer's tensors.

   A layer is processed in blocks. Within a block, each vector lane is summed in float32. The
   results of the blocks are added in float64. If the squares in a block leave float32's range
   (because of infinite, NaN, huge or tiny values), the block is summed again in float64 by the
   plain formulas. Layers with float64 tensors are summed only in float64. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chunks.h"

enum { AFTER, BEFORE, GRAD, BASE, VARIANCE, MOMENTUM, TENSORS };
enum { NONE, FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
/* The coefficients of a direction, in the order of `coefficients_of` in layer_step.py. */
typedef struct {
    double rate, grad_share, base_share, weight_share, update_share, variance_share, epsilon, decay,
        kept, divides;
} Form;

/* A layer's tensors, one entry for each of AFTER to MOMENTUM. A missing tensor has dtype NONE or
   address 0. */
typedef struct {
    const void *data[TENSORS];
    int32_t dtype[TENSORS];
    int64_t size; /* number of elements of each tensor */
    int64_t form; /* index of the layer's direction; -1 if the direction is unknown */
} Layer;

static int has(const Layer *l, int which) {
    return l->dtype[which] != NONE && (l->data[which] || !l->size);
}

static int is_known(const Layer *l) { return l->form >= 0 && has(l, GRAD); }

static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu, bits;
    float f;
    if (mag >= 0x7c00u) bits = sign | 0x7f800000u | ((mag & 0x3ffu) << 13);
    else if (mag >= 0x400u) bits = sign | ((mag << 13) + 0x38000000u);
    else { f = (float)mag * 0x1p-24f; return sign ? -f : f; }
    memcpy(&f, &bits, 4);
    return f;
}

static double at(const Layer *l, int which, int64_t i) {
    switch (l->dtype[which]) {
    case FLOAT32: return ((const float *)l->data[which])[i];
    case FLOAT64: return ((const double *)l->data[which])[i];
    case BFLOAT16: {
        uint32_t bits = (uint32_t)((const uint16_t *)l->data[which])[i] << 16;
        float f;
        memcpy(&f, &bits, 4);
        return f;
    }
    case FLOAT16: return half_to_float(((const uint16_t *)l->data[which])[i]);
    default: return 0;
    }
}

static void sum_in_float64(const Layer *l, const Form *f, int64_t start, int64_t end, double *out) {
    const int single = l->dtype[AFTER] == FLOAT32, known = is_known(l), copied = has(l, BEFORE),
              has_v = known && has(l, VARIANCE), has_x = has(l, BASE), has_g = has(l, GRAD),
              has_m = has(l, MOMENTUM);
    for (int64_t i = start; i < end; i++) {
        double after = at(l, AFTER, i), g = has_g ? at(l, GRAD, i) : 0, terms = 0, v = 0, den = 1;
        if (known) {
            if (f->grad_share != 0) terms += f->grad_share * g;
            if (has_x && f->base_share != 0) terms += f->base_share * at(l, BASE, i);
            if (has_v) {
                v = f->variance_share * at(l, VARIANCE, i);
                if (f->divides) den = sqrt(v) + f->epsilon;
            }
        }
        double w = after;
        if (copied) w = at(l, BEFORE, i);
        else if (known) {
            w = after + f->rate * (terms / den);
            if (single) w = (float)w;
            if (f->kept != 1) { w /= f->kept; if (single) w = (float)w; }
        }
        double update = after - w;
        out[WEIGHT_SQUARES] += w * w;
        out[UPDATE_SQUARES] += update * update;
        out[UPDATE_DOT_WEIGHT] += update * w;
        out[UPDATE_MAX] = larger(out[UPDATE_MAX], fabs(update));
        int finite = isfinite(w);
        if (has_g) {
            finite = finite && isfinite(g);
            out[GRAD_SQUARES] += g * g;
            out[GRAD_MAX] = larger(out[GRAD_MAX], fabs(g));
            out[ZERO_GRAD] += g == 0;
        }
        out[NONFINITE] += !finite;
        if (!known) continue;
        if (f->weight_share != 0) terms += f->weight_share * w;
        double d = terms / den; /* not each term: for den = 0, ∞ − ∞ would be NaN */
        if (f->update_share != 0) d += f->update_share * update;
        double u = f->decay != 0 ? d + f->decay * w : d;
        out[DIRECTION_SQUARES] += u * u;
        out[UNDECAYED_SQUARES] += d * d;
        out[UNDECAYED_DOT_WEIGHT] += d * w;
        out[SWALLOWED] += update == 0 && u != 0;
        if (has_m) {
            double m = at(l, MOMENTUM, i);
            out[GRAD_DOT_MOMENTUM] += g * m;
            out[MOMENTUM_SQUARES] += m * m;
        }
        if (has_v) {
            double least = f->epsilon * f->epsilon;
            out[VARIANCE_SUM] += v;
            out[SURPRISE_SUM] += g * g / (v < least ? least : v);
        }
    }
}

/* One block of each tensor of a layer, in float32. A missing tensor points to zeros. `size`, the
   number of elements, is a multiple of LANES. */
typedef struct {
    const float *data[TENSORS];
    int size;
} Block;

/* The results of a block in each vector lane. Counts are negative: -1 for each counted element.
   `unsure` is set if float32 could not decide for some element whether d + λw is 0. */
typedef struct {
    vec sum[FIRST_COUNT]; /* `measure_range` multiplies that of v by h, divides that of surprise */
    ivec zero, swallowed, unsure, max_update, max_grad;
} Lanes;

/* Facts about a block that select its loop. They do not change within a loop, so that the compiler
   can specialize it. */
typedef struct {
    int undone; /* there is no copy of w: it is computed by undoing the step */
    int near; /* `kept`, the factor by which the decay multiplies w, is close to 1 */
    int has_v, divides; /* whether v exists; whether d is divided by √v̂ + ε */
    int plain; /* d is b·m / (√v̂ + ε), without other terms */
    int derived; /* Σ (d + λw)² is computed by `derive_direction_squares` */
} Kind;

static const float zeros[BLOCK];

/* The coefficients of a direction in float32. */
typedef struct {
    float rate, grad_share, base_share, weight_share, update_share, root_share, epsilon, decay;
    float kept, undecayed, least;
    ivec uses_grad, uses_base, uses_weight; /* masks: whether d + λw has a term of g, x and w */
} Coefficients;

/* Converts the coefficients. If d is plain (see Kind), b is moved into the denominator, so that
   d = m / ((√v̂ + ε)/b). */
static Coefficients to_float32(const Form *f, int plain) {
    const double root = sqrt(f->variance_share), share = plain ? f->base_share : 1;
    /* Without a division, the terms c·w and λ·w cancel exactly if c = -λ. */
    const int uses_weight = f->divides != 0 ? f->weight_share != 0 || f->decay != 0
                                            : f->weight_share + f->decay != 0;
    return (Coefficients){
        .rate = (float)f->rate, .grad_share = (float)f->grad_share,
        .base_share = (float)f->base_share, .weight_share = (float)f->weight_share,
        .update_share = (float)f->update_share, .root_share = (float)(root / share),
        .epsilon = (float)(f->epsilon / share), .decay = (float)f->decay, .kept = (float)f->kept,
        .undecayed = (float)(1 / f->kept - 1), .least = (float)(root / f->epsilon),
        .uses_grad = mask(f->grad_share != 0), .uses_base = mask(f->base_share != 0),
        .uses_weight = mask(uses_weight)};
}

static inline __attribute__((always_inline)) void vector_step(
    const float *const *data, int i, const Coefficients *f, Kind kind, Lanes *s) {
    vec after = load(data[AFTER] + i), g = load(data[GRAD] + i), m = load(data[MOMENTUM] + i);
    vec x = kind.plain ? m : load(data[BASE] + i), terms;
    vec inverse = broadcast(1), den = broadcast(1);
    if (kind.plain) terms = x; /* the only term */
    else terms = f->grad_share * g + f->base_share * x;
    if (kind.has_v) {
        vec v = load(data[VARIANCE] + i);
        s->sum[VARIANCE_SUM] += v;
        v = (vec)max_bits(bits(v), bits(broadcast(1e-37f))); /* v > 0, or NaN for v < 0 */
        inverse = inverse_root(v);
        if (kind.divides) den = v * inverse * f->root_share + f->epsilon;
    }
    vec d = terms, w;
    if (kind.plain) d = terms / den; /* the division unit has nothing else to do */
    else if (kind.divides) { den = reciprocal(den); d = terms * den; }
    if (kind.undone) {
        w = after + f->rate * d;
        /* If `kept` is near 1, w + w·(1/kept − 1) is w / kept with one rounding. */
        w = kind.near ? w + w * f->undecayed : w / f->kept;
    } else w = load(data[BEFORE] + i);
    vec update = after - w;
    if (!kind.plain) d += f->weight_share * w * den + f->update_share * update;
    vec u = kind.derived ? d : d + f->decay * w;
    s->sum[WEIGHT_SQUARES] += w * w;
    s->sum[UPDATE_SQUARES] += update * update;
    s->sum[UPDATE_DOT_WEIGHT] += update * w;
    s->sum[GRAD_SQUARES] += g * g;
    if (!kind.derived) s->sum[DIRECTION_SQUARES] += u * u;
    s->sum[UNDECAYED_SQUARES] += d * d;
    s->sum[UNDECAYED_DOT_WEIGHT] += d * w;
    s->sum[GRAD_DOT_MOMENTUM] += g * m;
    s->sum[MOMENTUM_SQUARES] += m * m;
    if (kind.has_v) {
        vec surprise = g * minimum(inverse, broadcast(f->least));
        s->sum[SURPRISE_SUM] += surprise * surprise;
    }
    s->zero += g == 0;
    s->max_update = max_bits(s->max_update, magnitude(update));
    s->max_grad = max_bits(s->max_grad, magnitude(g));
    if (kind.undone) return;
    ivec still = update == 0, wanted = f->uses_base & (x != 0);
    if (!kind.plain) wanted |= f->uses_grad & (g != 0);
    wanted |= f->uses_weight & (w != 0);
    s->swallowed += still & (u != 0);
    /* u is 0 although it has a nonzero term. In float64 the terms may not underflow or cancel. */
    s->unsure |= still & (u == 0) & wanted;
}

static inline __attribute__((always_inline)) void vector_block(
    const Block *b, const Coefficients *f, Kind kind, Lanes *s) {
    for (int i = 0; i < b->size; i += LANES) vector_step(b->data, i, f, kind, s);
}

/* Computes Σ (d + λw)² from Σ d², Σ d·w and Σ w². Returns 0 if d and λw cancel so much that the
   result is too imprecise, else 1. */
static int derive_direction_squares(const Coefficients *f, Lanes *s) {
    const vec apart = s->sum[UNDECAYED_SQUARES] + f->decay * f->decay * s->sum[WEIGHT_SQUARES];
    s->sum[DIRECTION_SQUARES] = apart + 2 * f->decay * s->sum[UNDECAYED_DOT_WEIGHT];
    return !any_set(s->sum[DIRECTION_SQUARES] < 0.1f * apart);
}

/* The results of several blocks in each vector lane. */
typedef struct {
    wide sum[FIRST_COUNT];
    ivec zero, swallowed, max_update, max_grad;
} Total;

/* Returns the bitwise OR of the magnitudes in a block of a tensor: 0 if all are 0. */
static ivec bits_of(const Block *b, int which) {
    ivec found = {0};
    for (int i = 0; i < b->size; i += LANES) found |= magnitude(load(b->data[which] + i));
    return found;
}

/* Returns the lanes in which a sum of squares is almost 0 although `of`, the bits of the squared
   values, is not 0. There the squares underflow. */
static ivec underflowed(vec squares, ivec of) { return ~(squares > 1e-30f) & (of != 0); }

/* Returns whether any of a block's sums of squares is outside of float32's range: too large, or too
   small although a squared value is not 0. */
static int is_out_of_range(const Block *b, const Form *f, int has_v, const Lanes *s) {
    vec least = broadcast(1e30f), most = {0};
    static const int squares[] = {WEIGHT_SQUARES,    UPDATE_SQUARES,    GRAD_SQUARES,
                                  DIRECTION_SQUARES, UNDECAYED_SQUARES, MOMENTUM_SQUARES};
    for (int k = 0; k < 6; k++) {
        vec sum = s->sum[squares[k]];
        least = minimum(sum, least); /* ignores a NaN sum, which `most` finds */
        most += sum;
    }
    most += s->sum[VARIANCE_SUM] + s->sum[SURPRISE_SUM];
    if (has_v) least = minimum(s->sum[SURPRISE_SUM], least);
    if (any_set(~(most < 1e30f))) return 1;
    if (!any_set(~(least > 1e-30f))) return 0;
    /* This point is reached rarely, mostly because a tensor is all zeros. */
    ivec w = bits_of(b, AFTER) | bits_of(b, BEFORE) | s->max_update, m = bits_of(b, MOMENTUM);
    ivec g = s->max_grad;
    ivec d = {0};
    if (f->grad_share != 0) d |= g;
    if (f->base_share != 0) d |= bits_of(b, BASE);
    if (f->weight_share != 0) d |= w;
    if (f->update_share != 0) d |= s->max_update;
    ivec lost = underflowed(s->sum[WEIGHT_SQUARES], w) |
                underflowed(s->sum[UPDATE_SQUARES], s->max_update) |
                underflowed(s->sum[GRAD_SQUARES], g) | underflowed(s->sum[UNDECAYED_SQUARES], d) |
                underflowed(s->sum[DIRECTION_SQUARES], f->decay != 0 ? d | w : d) |
                underflowed(s->sum[MOMENTUM_SQUARES], m);
    if (has_v) lost |= underflowed(s->sum[SURPRISE_SUM], g);
    return any_set(lost);
}

/* Sums a block with the loop for its kind. Returns 0 if `derive_direction_squares` does, else 1. */
static int sum_block(const Block *b, const Coefficients *f, Kind k, Lanes *s) {
    if (k.plain && k.undone && k.near) {
        vector_block(b, f, (Kind){1, 1, 1, 1, 1, 1}, s);
        return derive_direction_squares(f, s);
    }
    if (k.plain) vector_block(b, f, (Kind){k.undone, k.near, 1, 1, 1, 0}, s);
    else if (k.has_v) vector_block(b, f, (Kind){k.undone, k.near, 1, k.divides, 0, 0}, s);
    else vector_block(b, f, (Kind){k.undone, k.near, 0, 0, 0, 0}, s);
    return 1;
}

/* Sums a block in float32, adds the sums to the total and returns 1. If float32 does not suffice,
   returns 0 and adds nothing. */
static int sum_in_float32(const Layer *l, const Form *f, const Block *b, Total *total) {
    Lanes s = {0};
    const int undone = is_known(l) && !has(l, BEFORE), has_v = is_known(l) && has(l, VARIANCE),
              plain = has_v && f->divides && b->data[BASE] == b->data[MOMENTUM] &&
                      f->base_share > 0 && f->grad_share == 0 && f->weight_share == 0 &&
                      f->update_share == 0;
    const int divides = has_v && f->divides, near = fabs(1 / f->kept - 1) < 1e-3;
    const Coefficients numbers = to_float32(f, plain);
    if (has_v && f->epsilon < 1e-12) return 0; /* the denominator may be 0 */
    if (!sum_block(b, &numbers, (Kind){undone, near, has_v, divides, plain, 0}, &s)) return 0;
    if (is_out_of_range(b, f, has_v, &s) || any_set(s.unsure)) return 0;
    for (int i = 0; i < FIRST_COUNT; i++) add_wide(&total->sum[i], s.sum[i]);
    total->zero += s.zero;
    total->swallowed += s.swallowed;
    total->max_update = max_bits(total->max_update, s.max_update);
    total->max_grad = max_bits(total->max_grad, s.max_grad);
    return 1;
}

typedef struct { float data[TENSORS][BLOCK]; } Scratch;

/* Sets `b` to the n elements of the layer's tensors from `start` on. Where a tensor is not float32,
   or the last vector is not full, `b` points to a converted or zero-padded copy in `scratch`. */
static void load_block(const Layer *l, int64_t start, int n, Scratch *scratch, Block *b) {
    const int padded = (n + LANES - 1) / LANES * LANES;
    b->size = padded;
    for (int k = 0; k < TENSORS; k++) {
        if (!has(l, k) || (!is_known(l) && k > GRAD)) { b->data[k] = zeros; continue; }
        if (l->dtype[k] == FLOAT32 && padded == n) {
            b->data[k] = (const float *)l->data[k] + start;
            continue;
        }
        float *to = scratch->data[k];
        if (l->dtype[k] == FLOAT32) memcpy(to, (const float *)l->data[k] + start, 4 * (size_t)n);
        else for (int i = 0; i < n; i++) to[i] = (float)at(l, k, start + i);
        for (int i = n; i < padded; i++) to[i] = 0;
        b->data[k] = to;
    }
    if (l->data[BASE] == l->data[MOMENTUM]) b->data[BASE] = b->data[MOMENTUM];
    if (!has(l, BEFORE) && !is_known(l)) b->data[BEFORE] = b->data[AFTER];
}

static void measure_range(const Layer *l, const Form *f, int64_t start, int64_t end, double *out) {
    static const Form none = {.kept = 1, .epsilon = 1, .variance_share = 1};
    Total total = {0};
    Scratch scratch;
    Block b;
    int narrow = 1;
    for (int i = 0; i < TENSORS; i++) narrow &= l->dtype[i] != FLOAT64;
    if (!is_known(l)) f = &none;
    for (int64_t at = start; at < end; at += BLOCK) {
        int n = (int)(end - at < BLOCK ? end - at : BLOCK), done = 0;
        if (narrow) {
            load_block(l, at, n, &scratch, &b);
            done = sum_in_float32(l, f, &b, &total);
            if (done) out[ZERO_GRAD] -= b.size - n; /* the zeros of the padding */
        }
        if (!done) sum_in_float64(l, f, at, at + n, out);
    }
    for (int i = 0; i < FIRST_COUNT; i++) {
        double sum = sum_lanes(&total.sum[i]);
        if (i == VARIANCE_SUM) sum *= f->variance_share;
        if (i == SURPRISE_SUM) sum /= f->variance_share;
        out[i] += sum;
    }
    out[ZERO_GRAD] += count_set(total.zero);
    out[SWALLOWED] += count_set(total.swallowed);
    out[UPDATE_MAX] = larger(out[UPDATE_MAX], largest_magnitude(total.max_update));
    out[GRAD_MAX] = larger(out[GRAD_MAX], largest_magnitude(total.max_grad));
}

/* Sets those sums to NaN that need a tensor which the layer lacks. */
static void set_missing_to_nan(const Layer *l, double *sums) {
    int lacks = 0;
    if (!has(l, GRAD)) lacks |= NEEDS_GRADIENT;
    if (!is_known(l)) lacks |= NEEDS_DIRECTION;
    if (!is_known(l) || !has(l, MOMENTUM)) lacks |= NEEDS_MOMENTUM;
    if (!is_known(l) || !has(l, VARIANCE)) lacks |= NEEDS_VARIANCE;
    for (int i = 0; i < SUMS; i++) if (SUM_NEEDS[i] & lacks) sums[i] = NAN;
}

/* A part of a layer, from element `start` on, and its sums. */
typedef struct {
    const Layer *layer;
    int64_t start;
    double sums[SUMS];
} Chunk;

static void measure_chunk(Chunk *c, const Form *forms) {
    const Layer *l = c->layer;
    memset(c->sums, 0, sizeof c->sums);
    measure_range(l, l->form < 0 ? 0 : forms + l->form, c->start, end_of_chunk(c->start, l->size),
                  c->sums);
}

/* Returns the chunks of n layers, layer by layer, and sets `count` to their number. The caller
   frees them. Returns 0 if out of memory. */
static Chunk *chunks_of(const Layer *layers, int64_t n, int64_t *count) {
    int64_t i = 0;
    *count = 0;
    for (int64_t k = 0; k < n; k++) *count += chunks_in(layers[k].size);
    Chunk *chunks = malloc(((size_t)*count + 1) * sizeof *chunks);
    if (!chunks) return 0;
    for (int64_t k = 0; k < n; k++)
        for (int64_t start = 0; start < layers[k].size; start += CHUNK, i++) {
            chunks[i].layer = &layers[k];
            chunks[i].start = start;
        }
    return chunks;
}

/* Computes the sums of n layers with `threads` threads. `out` has SUMS numbers for each layer.
   Returns 0 if out of memory, else 1. */
int trustlens_measure(const Layer *layers, int64_t n, const Form *forms, int threads, double *out) {
    int64_t count;
    Chunk *chunks = chunks_of(layers, n, &count);
    if (!chunks) return 0;
    memset(out, 0, (size_t)n * SUMS * sizeof *out);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) measure_chunk(&chunks[i], forms);
    /* The chunks are added in a fixed order, so that the number of threads has no effect. */
    for (int64_t i = 0; i < count; i++)
        add_sums(out + (chunks[i].layer - layers) * SUMS, chunks[i].sums);
    for (int64_t k = 0; k < n; k++) set_missing_to_nan(&layers[k], out + k * SUMS);
    free(chunks);
    return 1;
}

/* Returns the bucket of a number: its sign, exponent and first mantissa bits. */
static uint32_t bucket(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b >> BUCKET_SHIFT;
}

/* Counts the elements of a chunk's weights before the step, gradient and update. Without a copy of
   the weights before the step, the weights after it are counted instead, and each element of the
   update counts as 0. */
static void count_chunk(const Chunk *c, uint32_t counts[3][BUCKETS]) {
    const Layer *l = c->layer;
    const int64_t end = end_of_chunk(c->start, l->size);
    const int copied = has(l, BEFORE), has_g = has(l, GRAD);
    for (int64_t i = c->start; i < end; i++) {
        float after = (float)at(l, AFTER, i), before = copied ? (float)at(l, BEFORE, i) : after;
        counts[0][bucket(before)]++;
        if (has_g) counts[1][bucket((float)at(l, GRAD, i))]++;
        counts[2][bucket(after - before)]++;
    }
}

/* Adds the element histograms of n layers to `out`, which has 3 × BUCKETS counts for each layer.
   Returns 0 if out of memory, else 1. */
int trustlens_count(const Layer *layers, int64_t n, int threads, int64_t *out) {
    int64_t count;
    int failed = 0;
    Chunk *chunks = chunks_of(layers, n, &count);
    if (!chunks) return 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        uint32_t(*counts)[BUCKETS] = calloc(3, sizeof *counts);
        if (counts) {
            int64_t *to = out + (chunks[i].layer - layers) * 3 * BUCKETS;
            count_chunk(&chunks[i], counts);
            for (int k = 0; k < 3 * BUCKETS; k++)
                if (counts[0][k]) {
#pragma omp atomic
                    to[k] += counts[0][k];
                }
        } else {
#pragma omp atomic write
            failed = 1;
        }
        free(counts);
    }
    free(chunks);
    return !failed;
}

/* Sets `out` to the n float32 numbers that are stored at the addresses `places`. */
void trustlens_gather(const int64_t *places, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = *(const float *)places[i];
}
