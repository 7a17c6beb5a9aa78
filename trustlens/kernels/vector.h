/* Vectors of float32: loads, a reciprocal and its square root good to the last place or two,
   and sums in float64. With the compiler's own vector types, so that any of them builds it. */
#ifndef TRUSTLENS_VECTOR_H
#define TRUSTLENS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef double wide __attribute__((vector_size(8 * LANES)));
typedef float half_vec __attribute__((vector_size(2 * LANES))); /* half of a vector, */
typedef double half __attribute__((vector_size(4 * LANES))); /* and that in float64 */

static inline __attribute__((always_inline)) vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline __attribute__((always_inline)) void store(float *p, vec v) {
    memcpy(p, &v, sizeof v);
}

static inline __attribute__((always_inline)) vec all(float x) { return x - (vec){0}; }

static inline __attribute__((always_inline)) ivec bits(vec v) { return (ivec)v; }

/* A mask that is set everywhere or nowhere. */
static inline __attribute__((always_inline)) ivec mask(int set) { return (ivec){0} - (set != 0); }

/* a where the mask is set, else b. */
static inline __attribute__((always_inline)) vec choose(ivec mask, vec a, vec b) {
    return (vec)((mask & bits(a)) | (~mask & bits(b)));
}

static inline __attribute__((always_inline)) vec lower(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

/* The larger bits, as those of unsigned integers: of magnitudes in their order, NaN above all. What
   has a sign, be it of NaN, is above what has none. */
static inline __attribute__((always_inline)) ivec higher(ivec a, ivec b) {
#if defined(__AVX512F__)
    return (ivec)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_max_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE4_1__) && !defined(__AVX__)
    return (ivec)_mm_max_epu32((__m128i)a, (__m128i)b);
#else
    return (ivec)choose((uvec)a > (uvec)b, (vec)a, (vec)b);
#endif
}

static inline __attribute__((always_inline)) ivec magnitude(vec v) { return bits(v) & 0x7fffffff; }

static inline __attribute__((always_inline)) ivec is_finite(vec v) {
    return magnitude(v) < 0x7f800000;
}

/* x where the element is there, else 0. */
static inline __attribute__((always_inline)) vec only(ivec there, vec x) {
    return (vec)(there & bits(x));
}

/* a·b + c, rounded once where the processor can: said, not left to the compiler, so that it is the
   same wherever it stands. */
static inline __attribute__((always_inline)) vec plus_product(vec c, vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* 1/x: one Newton step behind the processor's estimate. */
static inline __attribute__((always_inline)) vec reciprocal(vec x) {
#if defined(__AVX512F__)
    vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y * (2 - x * y);
#elif defined(__AVX__) && defined(__FMA__)
    vec y = (vec)_mm256_rcp_ps((__m256)x);
    return y * (2 - x * y);
#else
    return 1 / x;
#endif
}

/* 1/√x, for an x of at least 1e-37, likewise. (Half of x by its exponent: the units that multiply
   are busy enough.) */
static inline __attribute__((always_inline)) vec inverse_root(vec x) {
#if defined(__AVX512F__)
    vec y = (vec)_mm512_rsqrt14_ps((__m512)x), halved = (vec)(bits(x) - (1 << 23));
    return y * (1.5f - halved * y * y);
#elif defined(__AVX__) && defined(__FMA__)
    vec y = (vec)_mm256_rsqrt_ps((__m256)x), halved = (vec)(bits(x) - (1 << 23));
    return y * (1.5f - halved * y * y);
#else
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = 1 / sqrtf(x[i]);
    return y;
#endif
}

static inline __attribute__((always_inline)) vec roots(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (vec)_mm256_sqrt_ps((__m256)x);
#else
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = sqrtf(x[i]);
    return y;
#endif
}

static inline __attribute__((always_inline)) void add_wide(wide *sum, vec v) {
    *sum += __builtin_convertvector(v, wide);
}

/* Half 0 or 1 of a vector, in float64. */
static inline __attribute__((always_inline)) half widened(vec v, int which) {
    half_vec part;
    memcpy(&part, (const char *)&v + which * sizeof part, sizeof part);
    return __builtin_convertvector(part, half);
}

/* Adds a·b, which float64 holds exactly. */
static inline __attribute__((always_inline)) void add_exactly(half *sum, vec a, vec b) {
    *sum += widened(a, 0) * widened(b, 0);
    *sum += widened(a, 1) * widened(b, 1);
}

static inline double across(const wide *sum) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += (*sum)[i];
    return total;
}

/* Whether a mask, as comparisons give, is set anywhere. */
static inline int any(ivec mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    int32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found != 0;
#endif
}

static inline int count(ivec masks) { /* -1 for each hit, as comparisons give */
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total -= masks[i];
    return total;
}

static inline float largest(ivec magnitudes) {
    int32_t most = 0;
    float f;
    for (int i = 0; i < LANES; i++) most = magnitudes[i] > most ? magnitudes[i] : most;
    memcpy(&f, &most, 4);
    return f;
}

#endif
