/* The softmax of masked scores and its gradient, and the loss over a vocabulary; all in place. Included once for each type.
 *
 * Scores are tiles of `rows` query rows and `columns` keys, one after another. Row r of a tile sees the keys up to `before` + r,
 * and of these the last `window` only where that is not 0; the others get a share of 0 and are not computed.
 */

struct NAME(sharing) {
    NUMBER *scores, *grad;
    int64_t rows, columns, before, window;
    const int64_t *targets;
    double *nats;
};

/* The largest of some numbers; those that are not numbers are passed over. */
static inline float NAME(largest)(const NUMBER *restrict x, int64_t count)
{
    float lanes[LANES];
    const int64_t whole = count - count % LANES;
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = -INFINITY;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = GET(x[i + lane]) > lanes[lane] ? GET(x[i + lane]) : lanes[lane];
    for (int64_t i = whole; i < count; i++)
        lanes[i - whole] = GET(x[i]) > lanes[i - whole] ? GET(x[i]) : lanes[i - whole];
    return largest_lane(lanes);
}

/* Numbers that are added up in float; the sums of so many are added up in double. */
enum { NAME(summed) = 4096 };

/* The sum of e^(x - largest). In float32 the terms take the place of x; in bfloat16 that would round them. */
static inline float NAME(sum_of_exp)(NUMBER *restrict x, float largest, int64_t count)
{
    float lanes[LANES] = {0}, terms[LANES];
    for (int64_t i = 0; i < count; i += LANES) {
        const int many = count - i < LANES ? (int)(count - i) : LANES;
        if (many == LANES)
            for (int lane = 0; lane < LANES; lane++)
                terms[lane] = exp_down(GET(x[i + lane]) - largest);
        else
            for (int lane = 0; lane < LANES; lane++)
                terms[lane] = lane < many ? exp_down(GET(x[i + lane]) - largest) : 0.0f;
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += terms[lane];
        if (sizeof *x == sizeof *terms)
            memcpy(x + i, terms, (size_t)many * sizeof *terms);
    }
    return add_lanes(lanes);
}

/* Turn numbers into their softmax; give the largest of them and the sum of e^(x - largest). */
static inline double NAME(softmax)(NUMBER *restrict x, int64_t count, float *largest)
{
    const float top = NAME(largest)(x, count);
    double sum = 0.0;
    for (int64_t i = 0; i < count; i += NAME(summed))
        sum += NAME(sum_of_exp)(x + i, top, count - i < NAME(summed) ? count - i : NAME(summed));
    const float each = (float)(1.0 / sum);
    for (int64_t i = 0; i < count; i++)
        x[i] = PUT((sizeof *x == sizeof(float) ? GET(x[i]) : exp_down(GET(x[i]) - top)) * each);
    *largest = top;
    return sum;
}

/* The first key that a row of a tile sees, and the key after the last. */
static inline int64_t NAME(first_seen)(const struct NAME(sharing) *w, int64_t end)
{
    return w->window > 0 && end > w->window ? end - w->window : 0;
}

static void NAME(softmax_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(sharing) *w = work;
    for (int64_t row = first; row < last; row++) {
        const int64_t end = w->before + row % w->rows + 1, begin = NAME(first_seen)(w, end);
        NUMBER *scores = w->scores + row * w->columns;
        float largest;
        memset(scores, 0, (size_t)begin * sizeof *scores);
        NAME(softmax)(scores + begin, end - begin, &largest);
        memset(scores + end, 0, (size_t)(w->columns - end) * sizeof *scores);
    }
}

static void NAME(softmax_back_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(sharing) *w = work;
    for (int64_t row = first; row < last; row++) {
        const int64_t end = w->before + row % w->rows + 1, begin = NAME(first_seen)(w, end), count = end - begin;
        const NUMBER *restrict shares = w->scores + row * w->columns + begin;
        NUMBER *restrict grad = w->grad + row * w->columns + begin;
        const int64_t whole = count - count % LANES;
        float lanes[LANES] = {0};
        for (int64_t i = 0; i < whole; i += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += GET(grad[i + lane]) * GET(shares[i + lane]);
        for (int64_t i = whole; i < count; i++)
            lanes[i - whole] += GET(grad[i]) * GET(shares[i]);
        const float mean = add_lanes(lanes);
        memset(grad - begin, 0, (size_t)begin * sizeof *grad);
        for (int64_t i = 0; i < count; i++)
            grad[i] = PUT((GET(grad[i]) - mean) * GET(shares[i]));
        memset(grad + count, 0, (size_t)(w->columns - end) * sizeof *grad);
    }
}

static void NAME(loss_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(sharing) *w = work;
    for (int64_t row = first; row < last; row++) {
        NUMBER *logits = w->scores + row * w->columns;
        const int64_t target = w->targets[row];
        const double wanted = GET(logits[target]);
        float largest;
        const double sum = NAME(softmax)(logits, w->columns, &largest);
        w->nats[row] = (double)largest - wanted + log(sum);
        logits[target] = PUT(GET(logits[target]) - 1.0f);
    }
}

/* Turn scores into shares.
 *
 * scores    tiles * rows * columns
 */
void NAME(bramble_softmax)(NUMBER *scores, int64_t tiles, int64_t rows, int64_t columns, int64_t before, int64_t window)
{
    const struct NAME(sharing) work = {scores, NULL, rows, columns, before, window, NULL, NULL};
    share(NAME(softmax_rows), &work, tiles * rows, columns);
}

/* Turn `grad`, the gradient by shares, into the gradient by the scores that they came from. */
void NAME(bramble_softmax_backward)(
    NUMBER *shares, NUMBER *grad, int64_t tiles, int64_t rows, int64_t columns, int64_t before, int64_t window)
{
    const struct NAME(sharing) work = {shares, grad, rows, columns, before, window, NULL, NULL};
    share(NAME(softmax_back_rows), &work, tiles * rows, columns);
}

/* Turn logits into the gradient of the summed cross-entropy by them, and write the loss of each row in nats.
 *
 * logits    rows * vocab
 * targets   the right token of each row, in [0, vocab)
 */
void NAME(bramble_loss)(NUMBER *logits, const int64_t *targets, double *nats, int64_t rows, int64_t vocab)
{
    const struct NAME(sharing) work = {logits, NULL, 1, vocab, 0, 0, targets, nats};
    share(NAME(loss_rows), &work, rows, vocab);
}
