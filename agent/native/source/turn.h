/* Rotary positions (Su et al. 2021, equation 34, in halves). Included once for each type. */

struct NAME(turning) {
    const NUMBER *given;
    NUMBER *out;
    const int64_t *given_steps, *out_steps;
    const float *cos, *sin;
    int64_t heads, rows, width, half;
    float scale, side;
};

static inline void NAME(turn_row)(
    const NUMBER *restrict given, NUMBER *restrict out, const float *restrict cos, const float *restrict sin, int64_t half,
    int64_t width, float scale, float side)
{
    for (int64_t i = 0; i < half; i++) {
        const float c = cos[i] * scale, s = sin[i] * side, one = GET(given[i]), two = GET(given[half + i]);
        out[i] = PUT(one * c - two * s);
        out[half + i] = PUT(two * c + one * s);
    }
    for (int64_t i = 2 * half; i < width; i++)
        out[i] = PUT(GET(given[i]) * scale);
}

static void NAME(turn_rows)(const void *work, int64_t first, int64_t last)
{
    const struct NAME(turning) *w = work;
    for (int64_t item = first; item < last; item++) {
        const int64_t row = item % w->rows, head = item / w->rows % w->heads, segment = item / w->rows / w->heads;
        NAME(turn_row)(
            w->given + segment * w->given_steps[0] + head * w->given_steps[1] + row * w->given_steps[2],
            w->out + segment * w->out_steps[0] + head * w->out_steps[1] + row * w->out_steps[2], w->cos + row * w->half,
            w->sin + row * w->half, w->half, w->width, w->scale, w->side);
    }
}

/* Turn heads and multiply them; dimensions from 2 * half on are only multiplied.
 *
 * given, out     `segments` * `heads` * `rows` vectors of `width` numbers side by side; they do not overlap
 * *_steps        numbers from one segment to the next, from one head to the next, and from one row to the next
 * cos, sin       rows * half
 * back           not 0 to turn the other way
 */
void NAME(bramble_turn)(
    const NUMBER *given, const int64_t *given_steps, NUMBER *out, const int64_t *out_steps, const float *cos, const float *sin,
    int64_t segments, int64_t heads, int64_t rows, int64_t width, int64_t half, float scale, int back)
{
    const struct NAME(turning) work = {given, out,  given_steps, out_steps, cos,   sin,
                                       heads, rows, width,       half,      scale, back ? -scale : scale};
    share(NAME(turn_rows), &work, segments * heads * rows, 2 * width);
}
