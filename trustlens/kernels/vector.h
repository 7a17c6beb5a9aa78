/* Operations on vectors of float32: loads, reciprocals, reciprocal square roots, and sums in
   float64. The error of the reciprocals is one or two units in the last place. The code uses the
   vector types of GCC and Clang, so that it compiles for any processor. */
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
typedef float half_vec __attribute__((vector_size(2 * LANES))); /* one half of the lanes */
typedef double half __attribute__((vector_size(4 * LANES))); /* the same in float64 */

static inline __attribute__((always_inline)) vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline __attribute__((always_inline)) void store(float *p, vec v) {
    memcpy(p, &v, sizeof v);
}

static inline __attribute__((always_inline)) vec broadcast(float x) { return x - (vec){0}; }

static inline __attribute__((always_inline)) ivec bits(vec v) { return (ivec)v; }

/* Returns a mask that is set in all lanes if `set` is not 0, else in none. */
static inline __attribute__((always_inline)) ivec mask(int set) { return (ivec){0} - (set != 0); }

/* Returns a in the lanes where the mask is set, and b in the others. */
static inline __attribute__((always_inline)) vec blend(ivec mask, vec a, vec b) {
    return (vec)((mask & bits(a)) | (~mask & bits(b)));
}

static inline __attribute__((always_inline)) vec minimum(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return blend(a < b, a, b);
#endif
}

/* Compares the bits of a and b as unsigned integers and returns the larger ones. For magnitudes,
   this is the larger magnitude, where NaN is the largest. A number whose sign bit is set, even NaN,
   is above every number whose sign bit is not set. */
static inline __attribute__((always_inline)) ivec max_bits(ivec a, ivec b) {
#if defined(__AVX512F__)
    return (ivec)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_max_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE4_1__) && !defined(__AVX__)
    return (ivec)_mm_max_epu32((__m128i)a, (__m128i)b);
#else
    return (ivec)blend((uvec)a > (uvec)b, (vec)a, (vec)b);
#endif
}

static inline __attribute__((always_inline)) ivec magnitude(vec v) { return bits(v) & 0x7fffffff; }

static inline __attribute__((always_inline)) ivec is_finite(vec v) {
    return magnitude(v) < 0x7f800000;
}

/* Returns x in the lanes where the mask is set, and 0 in the others. */
static inline __attribute__((always_inline)) vec masked(ivec there, vec x) {
    return (vec)(there & bits(x));
}

/* Returns c + a·b, rounded once if the processor has fused multiply-add. The instruction is chosen
   here, not by the compiler, so that the result does not depend on the surrounding code. */
static inline __attribute__((always_inline)) vec add_product(vec c, vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Returns 1/x: the processor's estimate, refined by one Newton step. */
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

/* Returns 1/√x for x ≥ 1e-37, computed in the same way as `reciprocal`. To halve x, the code
   decrements its exponent, because the multiplication units are the bottleneck. */
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

static inline __attribute__((always_inline)) vec square_root(vec x) {
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

/* Converts one half of a vector to float64: the first half if `which` is 0, else the second. */
static inline __attribute__((always_inline)) half to_double(vec v, int which) {
    half_vec part;
    memcpy(&part, (const char *)&v + which * sizeof part, sizeof part);
    return __builtin_convertvector(part, half);
}

/* Adds a·b to `sum`, with the lanes of both halves. Each product is exact in float64. */
static inline __attribute__((always_inline)) void add_exactly(half *sum, vec a, vec b) {
    *sum += to_double(a, 0) * to_double(b, 0);
    *sum += to_double(a, 1) * to_double(b, 1);
}

/* Returns the sum of all lanes. */
static inline double sum_lanes(const wide *sum) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += (*sum)[i];
    return total;
}

/* Returns whether a mask, the result of a comparison, is set in any lane. */
static inline int any_set(ivec mask) {
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

/* Returns how many comparisons were true. `masks` is a sum of masks; a true comparison adds -1. */
static inline int count_set(ivec masks) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total -= masks[i];
    return total;
}

/* Returns the largest magnitude in any lane, as a float. */
static inline float largest_magnitude(ivec magnitudes) {
    int32_t most = 0;
    float f;
    for (int i = 0; i < LANES; i++) most = magnitudes[i] > most ? magnitudes[i] : most;
    memcpy(&f, &most, 4);
    return f;
}

#endif
