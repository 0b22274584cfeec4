/* What all convolutions share: where inputs lie, and what becomes of the sums. */

typedef struct { /* channels and the taps that read them; with stride 2, one part for each phase */
    planes in;
    int32_t taps;
    const int32_t *tap; /* distances from the output's pixel, in floats */
} part;

typedef struct {
    const part *parts;
    int32_t part_count, channels, groups; /* channels: of a group's input */
    int32_t filters, inputs;              /* inputs: channels * taps of all parts */
    planes out, add, also;                /* add: the residual. also: a second output */
    const float *scale, *bias;
    const float *also_scale, *also_bias;
    activation activation, also_activation;
    grid grid, also_grid;
    runs runs;
    int32_t adds; /* whether there is a residual */
} convolution;

/* Distances of all inputs of a group from the arena's start, group after group. */
static void find_inputs(const convolution *c, offset *inputs)
{
    for (int g = 0; g < c->groups; g++)
        for (int p = 0; p < c->part_count; p++)
            for (int i = 0; i < c->channels; i++) {
                const part *q = c->parts + p;
                const uint32_t first = plane(&q->in, g * c->channels + i);
                for (int t = 0; t < q->taps; t++)
                    *inputs++ = first + (uint32_t)q->tap[t];
            }
}

/* Scale (unless it is in the weights), bias, residual, activation; then the sums are stored. */
INLINE void finish(const int count, const vec *sum, const convolution *c, int f, float *a, int at,
                   int last)
{
    vec y[8];
    const float bias = c->bias[f];
    if (c->scale) {
        const float scale = c->scale[f];
        UNROLL for (int k = 0; k < count; k++)
            y[k] = sum[k] * scale + bias;
    } else {
        UNROLL for (int k = 0; k < count; k++)
            y[k] = sum[k] + bias;
    }
    if (c->adds) {
        const float *residual = a + plane(&c->add, f) + at;
        UNROLL for (int k = 0; k < count; k++)
            y[k] += LOAD(residual + k * V);
    }
    activate(count, &c->activation, y);
    store_all(count, a + plane(&c->out, f) + at, y, last);
    if (c->also_scale) {
        UNROLL for (int k = 0; k < count; k++)
            y[k] = y[k] * c->also_scale[f] + c->also_bias[f];
        activate(count, &c->also_activation, y);
        store_all(count, a + plane(&c->also, f) + at, y, last);
    }
}

static void finish_borders(const convolution *c, float *a)
{
    complete(a, &c->out, c->filters, &c->grid);
    if (c->also_scale)
        complete(a, &c->also, c->filters, &c->also_grid);
}
