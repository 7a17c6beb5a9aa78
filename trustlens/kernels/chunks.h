/* Divides a layer into chunks and blocks, and adds the sums of chunks. All C libraries that compute
   the recorded sums use this header. */
#ifndef TRUSTLENS_CHUNKS_H
#define TRUSTLENS_CHUNKS_H

#include "sums.h"
#include "vector.h"

#define BLOCK (64 * LANES) /* elements; each lane adds 64 values in float32 */
#define CHUNK 65536 /* elements that a thread sums at a time */

static inline int64_t chunks_in(int64_t size) { return (size + CHUNK - 1) / CHUNK; }

/* Returns the end of the chunk that starts at element `start`. */
static inline int64_t end_of_chunk(int64_t start, int64_t size) {
    return size - start < CHUNK ? size : start + CHUNK;
}

/* Returns the larger number; NaN if either is NaN. */
static inline double larger(double a, double b) { return a >= b || a != a ? a : b; }

/* Combines a chunk's results with those of its layer: adds sums and counts, takes the larger
   maximum. */
static inline void add_sums(double *sums, const double *chunk) {
    for (int s = 0; s < FIRST_MAXIMUM; s++) sums[s] += chunk[s];
    for (int s = FIRST_MAXIMUM; s < SUMS; s++) sums[s] = larger(sums[s], chunk[s]);
}

#endif
