/* What is summed over a layer, in the order of `trustlens.recording.statistics.SUMS`, and how it is
   cut: the libraries that make these sums agree on that. */
#ifndef TRUSTLENS_SUMS_H
#define TRUSTLENS_SUMS_H

#include "vector.h"

enum { WEIGHT2, DIRECTION2, UPDATE2, GRAD2, UNDECAYED2, UNDECAYED_W, UPDATE_W, GRAD_M, MOMENTUM2,
       VARIANCE1, SURPRISE, NONFINITE, ZERO_GRAD, SWALLOWED, UPDATE_MAX, GRAD_MAX, SUMS };
#define BLOCK (64 * LANES) /* elements: a lane adds 64 numbers in float32 */
#define CHUNK 65536 /* elements, which one thread sums */

static inline int64_t chunks_in(int64_t size) { return (size + CHUNK - 1) / CHUNK; }

/* Where the chunk ends that starts there. */
static inline int64_t end_of_chunk(int64_t start, int64_t size) {
    return size - start < CHUNK ? size : start + CHUNK;
}

/* The larger one; NaN if one is. */
static inline double larger(double a, double b) { return a >= b || a != a ? a : b; }

/* Adds a chunk's sums to a layer's. */
static inline void add_sums(double *sums, const double *chunk) {
    for (int s = 0; s < UPDATE_MAX; s++) sums[s] += chunk[s];
    for (int s = UPDATE_MAX; s < SUMS; s++) sums[s] = larger(sums[s], chunk[s]);
}

#endif
