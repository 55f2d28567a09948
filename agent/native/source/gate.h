/* Gated linear units: act(gate) * up, forward and backward (Shazeer 2020, equation 6). Included once for each type.
 *
 * SiLU is x s(x), and the tanh form of GELU is x s(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), where s is the logistic function.
 */

struct NAME(gating) {
    const NUMBER *gate, *up;
    NUMBER *grad, *out, *to_up;
    int64_t count;
    int gelu;
};

/* Numbers that a thread takes at a time; where the cuts are does not depend on how many threads there are. */
enum { NAME(gate_block) = 4096 };

static inline float NAME(act)(float x, int gelu)
{
    return x * sigmoid(gelu ? 1.59576912f * (x + 0.044715f * x * x * x) : x);
}

/* The derivative of act. */
static inline float NAME(slope)(float x, int gelu)
{
    const float inner = gelu ? 1.59576912f * (x + 0.044715f * x * x * x) : x;
    const float by_x = gelu ? 1.59576912f * (1.0f + 0.134145f * x * x) : 1.0f;
    const float s = sigmoid(inner);
    return s + s * (1.0f - s) * by_x * x; /* in this order nothing overflows where s (1 - s) is 0 */
}

static inline void NAME(gate_numbers)(
    const NUMBER *restrict gate, const NUMBER *restrict up, NUMBER *restrict out, int64_t count, int gelu)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = PUT(NAME(act)(GET(gate[i]), gelu) * GET(up[i]));
}

static inline void NAME(gate_back_numbers)(
    const NUMBER *restrict gate, const NUMBER *restrict up, NUMBER *restrict grad, NUMBER *restrict out, NUMBER *restrict to_up,
    int64_t count, int gelu)
{
    for (int64_t i = 0; i < count; i++) {
        const float x = GET(gate[i]), y = GET(up[i]), outer = GET(grad[i]);
        const float act = NAME(act)(x, gelu);
        out[i] = PUT(act * y);
        to_up[i] = PUT(act * outer);
        grad[i] = PUT(outer * y * NAME(slope)(x, gelu));
    }
}

static void NAME(gate_blocks)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(gating) *w = work;
    const int64_t begin = first * NAME(gate_block), end = last * NAME(gate_block);
    const int64_t count = (end < w->count ? end : w->count) - begin;
    if (w->grad == NULL && w->gelu)
        NAME(gate_numbers)(w->gate + begin, w->up + begin, w->out + begin, count, 1);
    else if (w->grad == NULL)
        NAME(gate_numbers)(w->gate + begin, w->up + begin, w->out + begin, count, 0);
    else if (w->gelu)
        NAME(gate_back_numbers)
        (w->gate + begin, w->up + begin, w->grad + begin, w->out + begin, w->to_up + begin, count, 1);
    else
        NAME(gate_back_numbers)
        (w->gate + begin, w->up + begin, w->grad + begin, w->out + begin, w->to_up + begin, count, 0);
}

/* Write act(gate) * up into `out`; each `count` numbers. */
void NAME(bramble_gate)(const NUMBER *gate, const NUMBER *up, NUMBER *out, int64_t count, int gelu)
{
    const struct NAME(gating) work = {gate, up, NULL, out, NULL, count, gelu};
    share(NAME(gate_blocks), &work, (count + NAME(gate_block) - 1) / NAME(gate_block), NAME(gate_block));
}

/* Turn `grad`, the gradient by what came out, into the gradient by `gate`; write what came out, and the gradient by `up`. */
void NAME(bramble_gate_backward)(
    const NUMBER *gate, const NUMBER *up, NUMBER *grad, NUMBER *out, NUMBER *to_up, int64_t count, int gelu)
{
    const struct NAME(gating) work = {gate, up, grad, out, to_up, count, gelu};
    share(NAME(gate_blocks), &work, (count + NAME(gate_block) - 1) / NAME(gate_block), 3 * NAME(gate_block));
}
