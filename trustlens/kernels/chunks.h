/* How a layer is divided into blocks and chunks, and how the sums of chunks are joined: alike in
   all libraries that compute the recorded sums. */
#ifndef TRUSTLENS_CHUNKS_H
#define TRUSTLENS_CHUNKS_H

#include "sums.h"
#include "vector.h"

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
    for (int s = 0; s < FIRST_MAXIMUM; s++) sums[s] += chunk[s];
    for (int s = FIRST_MAXIMUM; s < SUMS; s++) sums[s] = larger(sums[s], chunk[s]);
}

#endif
