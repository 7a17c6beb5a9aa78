/* Generated from trustlens/kernels/sums.py by `python -m trustlens.kernels.sums`: do not edit. */
#ifndef TRUSTLENS_SUMS_H
#define TRUSTLENS_SUMS_H

/* The indices of the recorded sums of a layer. */
enum {
    WEIGHT_SQUARES,
    DIRECTION_SQUARES,
    UPDATE_SQUARES,
    GRAD_SQUARES,
    UNDECAYED_SQUARES,
    UNDECAYED_DOT_WEIGHT,
    UPDATE_DOT_WEIGHT,
    GRAD_DOT_MOMENTUM,
    MOMENTUM_SQUARES,
    VARIANCE_SUM,
    SURPRISE_SUM,
    NONFINITE,
    ZERO_GRAD,
    SWALLOWED,
    UPDATE_MAX,
    GRAD_MAX,
    SUMS
};
enum { FIRST_COUNT = 11, FIRST_MAXIMUM = 14 };

/* The inputs that each sum needs, as a combination of bits. */
enum { NEEDS_GRADIENT = 1, NEEDS_DIRECTION = 2, NEEDS_MOMENTUM = 4, NEEDS_VARIANCE = 8 };
static const unsigned char SUM_NEEDS[SUMS] = {
    0,
    NEEDS_DIRECTION,
    0,
    NEEDS_GRADIENT,
    NEEDS_DIRECTION,
    NEEDS_DIRECTION,
    0,
    NEEDS_MOMENTUM,
    NEEDS_MOMENTUM,
    NEEDS_VARIANCE,
    NEEDS_VARIANCE,
    0,
    NEEDS_GRADIENT,
    NEEDS_DIRECTION,
    0,
    NEEDS_GRADIENT,
};

/* The bucket of a float32 in an element histogram is its bit pattern >> BUCKET_SHIFT. */
enum { BUCKETS = 2048, BUCKET_SHIFT = 21 };

#endif
