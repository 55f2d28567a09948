/* Passes over memory of a training step, each fused into one, for float32 and bfloat16.
 *
 * Plain functions over pointers and sizes: they allocate nothing, keep nothing, and cannot fail. Whoever calls them answers for
 * the sizes. bfloat16 is the upper half of a float32; all arithmetic is in float32, and each result is rounded once.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "team.h"

#define NUMBER float
#define NAME(name) name##_float32
#define GET get_float32
#define PUT put_float32
#include "gate.h"
#include "norm.h"
#include "softmax.h"
#include "turn.h"
#undef NUMBER
#undef NAME
#undef GET
#undef PUT

#define NUMBER uint16_t
#define NAME(name) name##_bfloat16
#define GET get_bfloat16
#define PUT put_bfloat16
#include "gate.h"
#include "norm.h"
#include "softmax.h"
#include "turn.h"
