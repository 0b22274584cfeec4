/* Convolutions of bytes with few different weights, by lists as in lists.c. A load is a vector of
   bytes; sums of 16 bits for the upper and the lower byte of each pair of them take all lanes, so that
   a weight costs one load and three operations for 4 V pixels. A list is cut where its sums could
   take more than 16 bits. They are whole numbers and exact; then they become floats, which are
   multiplied by the scale. */

typedef struct {
    convolution c;
    int32_t values, most; /* most: terms that never overflow */
    int32_t offset;       /* of the bytes */
    int32_t chunks;       /* at most, of a filter */
    uint32_t base;        /* as in lists.c */
    int32_t wide;
    const float *value;
    const uint16_t *count, *list;
} integers;

enum { MOST_BY_INTEGERS = V < 16 ? 4 : 128 / V };

/* The four sums of 16 bits that lanes of `low` and `high` have, less some number, times a factor. A
   number in the lowest bits of 2^23 makes a float of 2^23 plus this number. */
INLINE void add_scaled(vec *y, bits low, bits high, float less, float factor)
{
    const uint32_t exponent = 0x4B000000;
    y[0] += (floats_of((low & 0xFFFF) | exponent) - less) * factor;
    y[1] += (floats_of((high & 0xFFFF) | exponent) - less) * factor;
    y[2] += (floats_of(low >> 16 | exponent) - less) * factor;
    y[3] += (floats_of(high >> 16 | exponent) - less) * factor;
}

typedef struct {
    float less, factor; /* of the sums of a list, or of a part of it */
} chunk;

/* Blocks of 4 V pixels. The vectors of sums have every fourth of them, which is the order in which
   codes become bytes again. */
static void finish_integers(const convolution *c, const chunk *chunks, int count, const float *sums,
                            int n, int f, float *a, int at, int last)
{
    const int direct = c->codes.inverse != 0 && !c->adds && !c->also_count;
    for (int k = 0; k < n; k++, at += W) {
        const int pixels = k + 1 < n ? W : last;
        const vec bias = SPLAT(c->bias[f]);
        vec y[4] = {bias, bias, bias, bias};
        for (int i = 0; i < count; i++) {
            const float *both = sums + (i * n + k) * 2 * V;
            const pairs upper = load_bytes(both + V);
            add_scaled(y, (bits)EVEN_SUMS(load_bytes(both), upper), (bits)upper, chunks[i].less,
                       chunks[i].factor);
        }
        if (direct) {
            activate(4, &c->activation, y);
            UNROLL for (int r = 0; r < 4; r++)
                y[r] = quantized(y[r], &c->codes);
            store_some_bytes((uint8_t *)a + plane(&c->out, f) + at, packed(y), pixels);
            continue;
        }
        interleave(y);
        if (pixels == W)
            finish_scaled(4, y, c, f, a, at, V);
        else
            for (int r = 0; r * V < pixels; r++)
                finish_scaled(1, y + r, c, f, a, at + r * V,
                              pixels - r * V < V ? pixels - r * V : V);
    }
}

INLINE void add_integers(const int n, const int wide, const integers *l, float *a,
                         const offset *inputs, float *scratch, int in, int out, int last)
{
    const convolution *c = &l->c;
    const int filters = c->filters, values = l->values;
    const uint8_t *x = (const uint8_t *)a + (wide ? 0 : l->base) + in;
    const uint16_t *next = l->list, *count = l->count;
    chunk *chunks = (chunk *)scratch;
    float *sums = scratch + 2 * l->chunks;
    for (int f = 0; f < filters; f++) {
        int found = 0;
        for (int v = 0; v < values; v++)
            for (const uint16_t *end = next + *count++; next < end; found++) {
                const int terms = end - next < l->most ? (int)(end - next) : l->most;
                pairs sum[8], upper[8];
                UNROLL for (int k = 0; k < n; k++)
                    sum[k] = upper[k] = (pairs){0};
                for (const uint16_t *stop = next + terms; next < stop; next++) {
                    const uint8_t *pixels = x + (wide ? inputs[*next] : *next);
                    UNROLL for (int k = 0; k < n; k++) {
                        pairs two = load_bytes(pixels + k * W);
                        KEEP(two);
                        sum[k] += LOWER_BYTES(two);
                        upper[k] += UPPER_BYTES(two);
                    }
                }
                UNROLL for (int k = 0; k < n; k++) {
                    float *both = sums + (found * n + k) * 2 * V;
                    store_bytes(both, (bits)sum[k]);
                    store_bytes(both + V, (bits)upper[k]);
                }
                chunks[found].less = 8388608.0f + (float)(terms * l->offset);
                chunks[found].factor = c->scale[f] * l->value[v];
            }
        finish_integers(c, chunks, found, sums, n, f, a, out, last);
    }
}

#define ADD_INTEGERS(n)                                                                            \
    static void add_integers_##n(const integers *l, float *a, const offset *inputs,                \
                                 float *scratch, int in, int out, int last)                    \
    {                                                                                              \
        if (l->wide)                                                                               \
            add_integers(n, 1, l, a, inputs, scratch, in, out, last);                              \
        else                                                                                       \
            add_integers(n, 0, l, a, inputs, scratch, in, out, last);                              \
    }
ADD_INTEGERS(1) ADD_INTEGERS(2) ADD_INTEGERS(3) ADD_INTEGERS(4)
#if NAME_VECTOR == 16
ADD_INTEGERS(5) ADD_INTEGERS(6) ADD_INTEGERS(7) ADD_INTEGERS(8)
#endif

static void convolve_integers(const integers *l, float *a, float *scratch)
{
    static void (*const kernels[])(const integers *, float *, const offset *, float *, int, int,
                                   int) = {
        add_integers_1, add_integers_2, add_integers_3, add_integers_4,
#if NAME_VECTOR == 16
        add_integers_5, add_integers_6, add_integers_7, add_integers_8,
#endif
    };
    const runs *r = &l->c.runs;
    offset *inputs = (offset *)scratch;
    float *sums = scratch + (l->wide ? l->c.inputs * l->c.groups : 0);
    if (l->wide)
        find_inputs(&l->c, inputs);
    for (int i = 0; i < r->count; i++) {
        block b;
        for (int at = 0; at < r->length; at += b.vectors * W) {
            b = next_block(r->length, at, MOST_BY_INTEGERS, W);
            if (l->c.adds && b.at < at) { /* the sum may lie where the residual was */
                b.at = at;
                b.last = r->length - at - (b.vectors - 1) * W;
            }
            kernels[b.vectors - 1](l, a, inputs, sums, i * r->in + b.at, i * r->out + b.at, b.last);
        }
    }
    finish_borders(&l->c, a);
}
