/* Every n-th pixel of every n-th row from some pixel on: the phases that a convolution with stride
   reads, cuts, borders of other widths, and the image itself. */

typedef struct {
    planes in, out;
    grid in_grid, out_grid;
    int32_t count, step_y, step_x, from_y, from_x;
    float outside; /* what stands for pixels outside the input */
} sample;

/* to[j] = x[2 j]: the lower half of every pair. Up to x[readable - 1] there is memory. */
INLINE void every_second(const float *x, float *to, int from, int end, int readable)
{
#if NAME_VECTOR > 1
    typedef uint64_t pairs __attribute__((vector_size(4 * V), aligned(4), may_alias));
    typedef uint32_t halves __attribute__((vector_size(2 * V), aligned(4), may_alias));
    for (; from + V / 2 <= end && 2 * from + V <= readable; from += V / 2)
        *(halves *)(to + from) = __builtin_convertvector(*(const pairs *)(x + 2 * from), halves);
#endif
    for (; from < end; from++)
        to[from] = x[2 * from];
    (void)readable;
}

INLINE void every_nth_byte(const uint8_t *x, uint8_t *to, int count, int step)
{
    int j = 0;
#if NAME_VECTOR > 1
    typedef uint16_t pairs_of_eight __attribute__((vector_size(16), aligned(1), may_alias));
    typedef uint8_t eight __attribute__((vector_size(8), aligned(1), may_alias));
    for (; step == 2 && j + 8 <= count; j += 8)
        *(eight *)(to + j) = __builtin_convertvector(*(const pairs_of_eight *)(x + 2 * j), eight);
#endif
    for (; j < count; j++)
        to[j] = x[j * step];
}

static void sample_bytes(const sample *s, const float *in, float *a)
{
    const grid *g = &s->out_grid;
    const int first = s->from_x < 0 ? (s->step_x - 1 - s->from_x) / s->step_x : 0;
    const int beyond = (s->in_grid.width - s->from_x + s->step_x - 1) / s->step_x;
    for (int c = 0; c < s->count; c++)
        for (int i = 0; i < g->height; i++) {
            const int y = s->from_y + i * s->step_y;
            const int end = y < 0 || y >= s->in_grid.height ? 0 : beyond < g->width ? beyond : g->width;
            uint8_t *to = (uint8_t *)a + plane(&s->out, c) + i * g->pitch;
            const uint8_t *x = (const uint8_t *)in + plane(&s->in, c);
            if (first > 0 || end < g->width)
                clear_bytes(to, g->width, g->zero);
            if (first < end)
                every_nth_byte(x + y * s->in_grid.pitch + s->from_x + first * s->step_x, to + first,
                               end - first, s->step_x);
        }
    complete(a, &s->out, s->count, g);
}

static void sample_planes(const sample *s, const float *in, float *a)
{
    if (s->out_grid.zero >= 0) {
        sample_bytes(s, in, a);
        return;
    }
    const grid *g = &s->out_grid;
    const int step = s->step_x, first = s->from_x;
    const int low = first < 0 ? (step - 1 - first) / step : 0;
    const int high = (s->in_grid.width - first + step - 1) / step;
    for (int c = 0; c < s->count; c++)
        for (int i = 0; i < g->height; i++) {
            const int y = s->from_y + i * s->step_y;
            const int within = y >= 0 && y < s->in_grid.height;
            const int end = within && high > 0 ? (high < g->width ? high : g->width) : 0;
            const int from = low < end ? low : end;
            const float *restrict x = in + plane(&s->in, c) + (within ? y * s->in_grid.pitch : 0);
            float *restrict to = a + plane(&s->out, c) + i * g->pitch;
            for (int j = 0; j < from; j++)
                to[j] = s->outside;
            if (step == 1)
                for (int j = from; j < end; j++)
                    to[j] = x[j + first];
            else if (step == 2)
                every_second(x + first, to, from, end, s->in_grid.width - first + (in == a));
            else
                for (int j = from; j < end; j++)
                    to[j] = x[j * step + first];
            for (int j = end; j < g->width; j++)
                to[j] = s->outside;
        }
    complete(a, &s->out, s->count, g);
}
