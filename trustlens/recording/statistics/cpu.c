/* One pass over a layer's tensors: every sum of `trustlens.recording.statistics`.

   Blocks are summed in float32 over vector lanes, and across blocks in float64. A block whose
   numbers float32 cannot square (infinite, NaN, huge or tiny), or that is not float32, is done
   again in float64, by the plain formulas. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { AFTER, BEFORE, GRAD, BASE, VARIANCE, MOMENTUM, TENSORS };
enum { NONE, FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum { WEIGHT2, DIRECTION2, UPDATE2, GRAD2, UNDECAYED2, UNDECAYED_W, UPDATE_W, GRAD_M, MOMENTUM2,
       VARIANCE1, SURPRISE, NONFINITE, ZERO_GRAD, SWALLOWED, UPDATE_MAX, GRAD_MAX, SUMS };
#define BLOCK 512 /* a longer one is faster by a sixth, and off by 3e-5 where all elements are equal */

typedef struct {
    const void *data[TENSORS];
    int32_t dtype[TENSORS];
    int32_t known, divides;
    int64_t size;
    double rate, grad_share, base_share, weight_share, update_share, variance_share, epsilon, decay,
        kept;
} Layer;

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

static double larger(double a, double b) { return a >= b || a != a ? a : b; }

static void slow_block(const Layer *l, int64_t start, int64_t end, double *out) {
    int single = l->dtype[AFTER] == FLOAT32;
    for (int64_t i = start; i < end; i++) {
        double after = at(l, AFTER, i), g = at(l, GRAD, i), x = at(l, BASE, i), d = 0, v = 0, den = 1;
        int has_v = l->known && l->dtype[VARIANCE] != NONE;
        if (l->known) {
            if (l->grad_share != 0) d += l->grad_share * g;
            if (l->dtype[BASE] != NONE && l->base_share != 0) d += l->base_share * x;
            if (has_v) {
                v = l->variance_share * at(l, VARIANCE, i);
                if (l->divides) { den = sqrt(v) + l->epsilon; d /= den; }
            }
        }
        double w = after;
        if (l->dtype[BEFORE] != NONE) w = at(l, BEFORE, i);
        else if (l->known) {
            w = after + l->rate * d;
            if (single) w = (float)w;
            if (l->kept != 1) { w /= l->kept; if (single) w = (float)w; }
        }
        double update = after - w;
        out[WEIGHT2] += w * w;
        out[UPDATE2] += update * update;
        out[UPDATE_W] += update * w;
        out[UPDATE_MAX] = larger(out[UPDATE_MAX], fabs(update));
        int finite = isfinite(w);
        if (l->dtype[GRAD] != NONE) {
            finite = finite && isfinite(g);
            out[GRAD2] += g * g;
            out[GRAD_MAX] = larger(out[GRAD_MAX], fabs(g));
            out[ZERO_GRAD] += g == 0;
        }
        out[NONFINITE] += !finite;
        if (!l->known) continue;
        if (l->weight_share != 0) d += l->weight_share * w / den;
        if (l->update_share != 0) d += l->update_share * update;
        double u = l->decay != 0 ? d + l->decay * w : d;
        out[DIRECTION2] += u * u;
        out[UNDECAYED2] += d * d;
        out[UNDECAYED_W] += d * w;
        out[SWALLOWED] += update == 0 && u != 0;
        if (l->dtype[MOMENTUM] != NONE) {
            double m = at(l, MOMENTUM, i);
            out[GRAD_M] += g * m;
            out[MOMENTUM2] += m * m;
        }
        if (has_v) {
            double least = l->epsilon * l->epsilon;
            out[VARIANCE1] += v;
            out[SURPRISE] += g * g / (v < least ? least : v);
        }
    }
}

static const float zeros[BLOCK];

/* Adds a block to `out` and returns 1; returns 0, leaving `out` as it is, if float32 cannot do it.

   One loop for all: what a layer does not have is read as zeros, and its sums are left out at the
   end. A loop with branches would not be made of vectors. */
static int fast_block(const Layer *l, int64_t start, int n, double *out) {
    const float *p[TENSORS];
    for (int i = 0; i < TENSORS; i++)
        p[i] = l->dtype[i] == NONE || (!l->known && i > GRAD) ? zeros
                                                               : (const float *)l->data[i] + start;
    const int undone = l->known && l->dtype[BEFORE] == NONE,
              has_v = l->known && l->dtype[VARIANCE] != NONE, divides = has_v && l->divides;
    if (!undone && l->dtype[BEFORE] == NONE) p[BEFORE] = p[AFTER];
    const float *restrict after = p[AFTER], *restrict before = p[BEFORE], *restrict grad = p[GRAD],
                *restrict base = p[BASE], *restrict variance = p[VARIANCE],
                *restrict momentum = p[MOMENTUM];
    const float a = l->known ? (float)l->grad_share : 0, b = l->known ? (float)l->base_share : 0,
                c = (float)l->weight_share, e = (float)l->update_share,
                h = (float)l->variance_share, eps = (float)l->epsilon, decay = (float)l->decay,
                rate = undone ? (float)l->rate : 0, kept = undone ? (float)l->kept : 1,
                least = has_v ? eps : 1;
    float ww = 0, uu = 0, dd = 0, rr = 0, gg = 0, dw = 0, rw = 0, gm = 0, mm = 0, vv = 0, ss = 0;
    float most_w = 0, most_u = 0, most_g = 0, most_d = 0, most_r = 0, most_m = 0, bad = 0;
    int zero = 0, swallowed = 0;
#pragma omp simd reduction(+ : ww, uu, dd, rr, gg, dw, rw, gm, mm, vv, ss, zero, swallowed, bad) \
    reduction(max : most_w, most_u, most_g, most_d, most_r, most_m)
    for (int i = 0; i < n; i++) {
        float g = grad[i], m = momentum[i], v = h * variance[i], root = sqrtf(v);
        float terms = a * g + b * base[i], den = divides ? 1 / (root + eps) : 1, d = terms * den;
        float w = undone ? (after[i] + rate * d) / kept : before[i];
        float update = after[i] - w;
        d += c * w * den + e * update;
        float u = d + decay * w, s = g / (root < least ? least : root);
        ww += w * w;
        rr += update * update;
        rw += update * w;
        gg += g * g;
        uu += u * u;
        dd += d * d;
        dw += d * w;
        gm += g * m;
        mm += m * m;
        vv += v;
        ss += s * s;
        zero += g == 0;
        swallowed += (update == 0) & ((u != 0) | (terms != 0));
        bad += w * 0 + update * 0 + g * 0 + d * 0 + m * 0 + v * 0 + s * 0;
        most_w = fabsf(w) > most_w ? fabsf(w) : most_w;
        most_r = fabsf(update) > most_r ? fabsf(update) : most_r;
        most_g = fabsf(g) > most_g ? fabsf(g) : most_g;
        most_d = fabsf(d) > most_d ? fabsf(d) : most_d;
        most_u = fabsf(u) > most_u ? fabsf(u) : most_u;
        most_m = fabsf(m) > most_m ? fabsf(m) : most_m;
    }
    const float most[] = {most_w, most_u, most_g, most_d, most_r, most_m};
    for (int i = 0; i < 6; i++)
        if (most[i] != 0 && !(most[i] > 1e-15f && most[i] < 1e15f)) return 0;
    if (bad != 0 || !(ss < 1e30f) || !(vv < 1e30f)) return 0;
    out[WEIGHT2] += ww; out[UPDATE2] += rr; out[UPDATE_W] += rw; out[GRAD2] += gg;
    out[DIRECTION2] += uu; out[UNDECAYED2] += dd; out[UNDECAYED_W] += dw; out[GRAD_M] += gm;
    out[MOMENTUM2] += mm; out[VARIANCE1] += vv; out[SURPRISE] += ss;
    out[ZERO_GRAD] += zero; out[SWALLOWED] += swallowed;
    out[UPDATE_MAX] = larger(out[UPDATE_MAX], most_r);
    out[GRAD_MAX] = larger(out[GRAD_MAX], most_g);
    return 1;
}

static void measure_range(const Layer *l, int64_t start, int64_t end, double *out) {
    int single = 1;
    for (int i = 0; i < TENSORS; i++) single &= l->dtype[i] == NONE || l->dtype[i] == FLOAT32;
    for (int64_t at = start; at < end; at += BLOCK) {
        int n = (int)(end - at < BLOCK ? end - at : BLOCK);
        if (!single || !fast_block(l, at, n, out)) slow_block(l, at, at + n, out);
    }
}

/* Makes NaN of the sums that a layer does not have. */
static void leave_out(const Layer *l, double *sums) {
    static const int of_grad[] = {GRAD2, GRAD_MAX, ZERO_GRAD},
                     of_direction[] = {DIRECTION2, UNDECAYED2, UNDECAYED_W, SWALLOWED},
                     of_momentum[] = {GRAD_M, MOMENTUM2}, of_variance[] = {VARIANCE1, SURPRISE};
    for (int i = 0; i < 3; i++) if (l->dtype[GRAD] == NONE) sums[of_grad[i]] = NAN;
    for (int i = 0; i < 4; i++) if (!l->known) sums[of_direction[i]] = NAN;
    for (int i = 0; i < 2; i++) {
        if (!l->known || l->dtype[MOMENTUM] == NONE) sums[of_momentum[i]] = NAN;
        if (!l->known || l->dtype[VARIANCE] == NONE) sums[of_variance[i]] = NAN;
    }
}

#define CHUNK 65536

typedef struct {
    const Layer *layer;
    int64_t start;
    double sums[SUMS];
} Chunk;

/* Sums of n layers, SUMS each, by so many threads; 0 if there is no memory for them. */
int trustlens_measure(const Layer *layers, int64_t n, int threads, double *out) {
    int64_t count = 0, i = 0;
    for (int64_t k = 0; k < n; k++) count += (layers[k].size + CHUNK - 1) / CHUNK;
    Chunk *chunks = calloc((size_t)count + 1, sizeof *chunks);
    if (!chunks) return 0;
    for (int64_t k = 0; k < n; k++)
        for (int64_t start = 0; start < layers[k].size; start += CHUNK, i++) {
            chunks[i].layer = &layers[k];
            chunks[i].start = start;
        }
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i = 0; i < count; i++) {
        int64_t left = chunks[i].layer->size - chunks[i].start;
        measure_range(chunks[i].layer, chunks[i].start,
                      chunks[i].start + (left < CHUNK ? left : CHUNK), chunks[i].sums);
    }
    /* Always in the same order: the sums do not depend on the threads. */
    memset(out, 0, (size_t)n * SUMS * sizeof *out);
    for (i = 0; i < count; i++) {
        double *sums = out + (chunks[i].layer - layers) * SUMS;
        for (int s = 0; s < UPDATE_MAX; s++) sums[s] += chunks[i].sums[s];
        for (int s = UPDATE_MAX; s < SUMS; s++) sums[s] = larger(sums[s], chunks[i].sums[s]);
    }
    for (int64_t k = 0; k < n; k++) leave_out(&layers[k], out + k * SUMS);
    free(chunks);
    return 1;
}
