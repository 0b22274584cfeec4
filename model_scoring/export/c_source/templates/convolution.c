/* What all convolutions share: where inputs lie, and what becomes of the sums. */

typedef struct { /* channels and the taps that read them; with stride 2, one part for each phase */
    planes in;
    int32_t taps;
    const int32_t *tap; /* distances from the output's pixel, in floats */
} part;

typedef struct { /* a further output: scale y + bias, activated */
    planes out;
    const float *scale, *bias;
    activation activation;
    codes codes;
    grid grid;
} also;

typedef struct {
    const part *parts;
    int32_t part_count, channels, groups; /* channels: of a group's input */
    int32_t filters, inputs;              /* inputs: channels * taps of all parts */
    planes out, add;                      /* add: the residual */
    const float *scale, *bias;
    activation activation;
    codes codes;
    grid grid;
    runs runs;
    int32_t adds, stored; /* whether there is a residual; whether y itself is an output */
    int32_t also_count;
    const also *also;
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

/* Residual, activation; then the sums are stored. */
INLINE void finish_scaled(const int count, vec *y, const convolution *c, int f, float *a, int at,
                          int last)
{
    if (c->adds) {
        const float *residual = a + plane(&c->add, f) + at;
        UNROLL for (int k = 0; k < count; k++)
            y[k] += LOAD(residual + k * V);
    }
    activate(count, &c->activation, y);
    if (c->stored)
        put(count, a, plane(&c->out, f) + (uint32_t)at, y, last, &c->codes);
    for (int i = 0; i < c->also_count; i++) {
        const also *s = c->also + i;
        vec z[8];
        UNROLL for (int k = 0; k < count; k++)
            z[k] = y[k] * s->scale[f] + s->bias[f];
        activate(count, &s->activation, z);
        put(count, a, plane(&s->out, f) + (uint32_t)at, z, last, &s->codes);
    }
}

/* Scale (unless it is in the weights) and bias come before. */
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
    finish_scaled(count, y, c, f, a, at, last);
}

static void finish_borders(const convolution *c, float *a)
{
    if (c->stored)
        complete(a, &c->out, c->filters, &c->grid);
    for (int i = 0; i < c->also_count; i++)
        complete(a, &c->also[i].out, c->filters, &c->also[i].grid);
}
