/* Root mean square norm, forward and backward (Zhang and Sennrich 2019, equation 4). Included once for each type.
 *
 * A row x of `width` numbers becomes unit * weight, where unit = x * scale and scale = 1 / sqrt(mean(x^2) + eps).
 */

struct NAME(norming) {
    const float *x, *weight;
    NUMBER *unit, *out;
    float *scale, *to_x;
    const NUMBER *grad;
    int64_t width;
    float eps;
};

static void NAME(norm_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(norming) *w = work;
    const int64_t width = w->width, whole = width - width % LANES;
    const float *restrict weight = w->weight;
    for (int64_t row = first; row < last; row++) {
        const float *restrict x = w->x + row * width;
        NUMBER *restrict unit = w->unit + row * width, *restrict out = w->out + row * width;
        float lanes[LANES] = {0};
        for (int64_t i = 0; i < whole; i += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += x[i + lane] * x[i + lane];
        for (int64_t i = whole; i < width; i++)
            lanes[i - whole] += x[i] * x[i];
        const float scale = 1.0f / sqrtf(add_lanes(lanes) / (float)width + w->eps);
        w->scale[row] = scale;
        for (int64_t i = 0; i < width; i++) {
            unit[i] = PUT(x[i] * scale);
            out[i] = PUT(GET(unit[i]) * weight[i]);
        }
    }
}

static void NAME(norm_back_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(norming) *w = work;
    const int64_t width = w->width, whole = width - width % LANES;
    const float *restrict weight = w->weight;
    for (int64_t row = first; row < last; row++) {
        const NUMBER *restrict unit = w->unit + row * width, *restrict grad = w->grad + row * width;
        NUMBER *restrict out = w->out + row * width;
        float *restrict to_x = w->to_x + row * width;
        const float scale = w->scale[row];
        float lanes[LANES] = {0};
        for (int64_t i = 0; i < whole; i += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += GET(grad[i + lane]) * weight[i + lane] * GET(unit[i + lane]);
        for (int64_t i = whole; i < width; i++)
            lanes[i - whole] += GET(grad[i]) * weight[i] * GET(unit[i]);
        const float along = add_lanes(lanes) / (float)width;
        for (int64_t i = 0; i < width; i++) {
            const float direction = GET(unit[i]);
            to_x[i] = (GET(grad[i]) * weight[i] - direction * along) * scale;
            out[i] = PUT(direction * weight[i]);
        }
    }
}

static void NAME(norm_again_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(norming) *w = work;
    for (int64_t row = first; row < last; row++) {
        const NUMBER *restrict unit = w->unit + row * w->width;
        NUMBER *restrict out = w->out + row * w->width;
        for (int64_t i = 0; i < w->width; i++)
            out[i] = PUT(GET(unit[i]) * w->weight[i]);
    }
}

/* Write `unit`, `scale` and what comes out of the norm of `rows` rows. */
void NAME(bramble_norm)(
    const float *x, const float *weight, NUMBER *unit, NUMBER *out, float *scale, int64_t rows, int64_t width, float eps)
{
    const struct NAME(norming) work = {x, weight, unit, out, scale, NULL, NULL, width, eps};
    share(NAME(norm_rows), &work, rows, 3 * width);
}

/* Write once more what came out of a norm that left `unit`. */
void NAME(bramble_norm_again)(NUMBER *unit, const float *weight, NUMBER *out, int64_t rows, int64_t width)
{
    const struct NAME(norming) work = {NULL, weight, unit, out, NULL, NULL, NULL, width, 0.0f};
    share(NAME(norm_again_rows), &work, rows, 2 * width);
}

/* Write the gradient by x of a norm that left `unit` and `scale`, and once more what came out.
 *
 * grad      the gradient by what came out
 */
void NAME(bramble_norm_backward)(
    NUMBER *unit, float *scale, const float *weight, const NUMBER *grad, NUMBER *out, float *to_x, int64_t rows, int64_t width)
{
    const struct NAME(norming) work = {NULL, weight, unit, out, scale, to_x, grad, width, 0.0f};
    share(NAME(norm_back_rows), &work, rows, 4 * width);
}
