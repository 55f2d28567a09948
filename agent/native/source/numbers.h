/* Numbers: bfloat16, and functions that compilers turn into vector code.
 *
 * Every operation here and in the kernels is one that IEEE 754 defines to the last bit, and sums are added up in an order that
 * the source states. Compiled without contraction of products and sums, any instruction set gives the same bits.
 */
#ifndef BRAMBLE_NUMBERS_H
#define BRAMBLE_NUMBERS_H

#include <stdint.h>
#include <string.h>

/* Partial sums that are added up side by side; a multiple of any vector's length. */
enum { LANES = 32 };

static inline float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float get_float32(float value)
{
    return value;
}

static inline float put_float32(float value)
{
    return value;
}

static inline float get_bfloat16(uint16_t narrow)
{
    return from_bits((uint32_t)narrow << 16);
}

/* Round to nearest, ties to even; what is not a number becomes the quiet one. */
static inline uint16_t put_bfloat16(float value)
{
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/* e^x for x <= 0, within 2 units in the last place; 0 where it would not be a normal number.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r), where q is the polynomial of degree 4 whose largest
 * relative error is least (3e-9, found by weighted least squares).
 */
static inline float exp_down(float x)
{
    const float lowest = -87.336544f; /* ln of the smallest normal number */
    const float magic = 12582912.0f;  /* 1.5 * 2^23: added to a small number, it leaves an integer in the last bits */
    const float inside = x < lowest ? lowest : x;
    const float shifted = inside * 1.44269504f + magic;
    const float n = shifted - magic;
    float r = __builtin_fmaf(n, -0.693145752f, inside);
    r = __builtin_fmaf(n, -1.42860677e-6f, r);
    float q = __builtin_fmaf(0.00138145988f, r, 0.00836871658f);
    q = __builtin_fmaf(q, r, 0.041668389f);
    q = __builtin_fmaf(q, r, 0.166665211f);
    q = __builtin_fmaf(q, r, 0.49999994f);
    q = __builtin_fmaf(q, r * r, r) + 1.0f;
    const float power = from_bits((to_bits(shifted) << 23) + 0x3f800000u);
    return x < lowest ? 0.0f : q * power;
}

/* 1 / (1 + e^-x), without an intermediate value that overflows. */
static inline float sigmoid(float x)
{
    const float e = exp_down(from_bits(to_bits(x) | 0x80000000u));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* Add up partial sums, in halves. */
static inline float add_lanes(float *lanes)
{
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++)
            lanes[lane] += lanes[lane + width];
    return lanes[0];
}

/* Give the largest of partial maxima. */
static inline float largest_lane(const float *lanes)
{
    float largest = lanes[0];
    for (int lane = 1; lane < LANES; lane++)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
}

#endif
