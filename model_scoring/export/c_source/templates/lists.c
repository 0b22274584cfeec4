/* Convolutions with few different weights. For each filter and each value but 0, a list of the
   inputs that have it as their weight: one load and one addition for each of them and each vector
   of pixels, no multiplication. Between two lists the sums are multiplied by the ratio of their
   values, so that one set of registers is enough; after the last, by its value. What many channels
   read does not fit into the first cache: then the channels come in tiles, one for all filters
   before the next, and sums wait in between. */

typedef struct {
    convolution c;
    int32_t values, tiles;
    uint32_t base;         /* of the lists' entries, if they are distances */
    int32_t wide;          /* whether they are numbers of inputs, whose distances take 32 bits */
    const float *ratio;    /* of each value to the next */
    const uint16_t *count; /* lengths of the lists, (tiles, filters, values) */
    const uint16_t *list;
} lists;

enum { MOST_BY_LISTS = V < 16 ? 8 : 128 / V }; /* vectors in registers; 128 pixels at most */

INLINE void add_lists(const int n, const int wide, const lists *l, float *a, const offset *inputs,
                      float *sums, int in, int out, int last)
{
    const convolution c = l->c; /* which no store can change */
    const float *x = a + (wide ? 0 : l->base) + in;
    const uint16_t *next = l->list, *count = l->count;
    for (int tile = 0; tile < l->tiles; tile++)
        for (int f = 0; f < c.filters; f++) {
            float *waiting = sums + f * n * V;
            vec sum[MOST_BY_LISTS];
            UNROLL for (int k = 0; k < n; k++)
                sum[k] = SPLAT(0.0f);
            for (int v = 0; v < l->values; v++) {
                if (v > 0) {
                    UNROLL for (int k = 0; k < n; k++)
                        sum[k] *= l->ratio[v - 1];
                }
                for (const uint16_t *end = next + *count++; next < end; next++) {
                    const float *pixels = x + (wide ? inputs[*next] : *next);
                    UNROLL for (int k = 0; k < n; k++)
                        sum[k] += LOAD(pixels + k * V);
                }
            }
            if (tile > 0) {
                UNROLL for (int k = 0; k < n; k++)
                    sum[k] += LOAD(waiting + k * V);
            }
            if (tile + 1 < l->tiles) {
                UNROLL for (int k = 0; k < n; k++)
                    STORE(waiting + k * V, sum[k]);
            } else {
                finish(n, sum, &c, f, a, out, last);
            }
        }
}

#define ADD_LISTS(n)                                                                               \
    static void add_lists_##n(const lists *l, float *a, const offset *inputs, float *sums, int in, \
                              int out, int last)                                                   \
    {                                                                                              \
        if (l->wide)                                                                               \
            add_lists(n, 1, l, a, inputs, sums, in, out, last);                                    \
        else                                                                                       \
            add_lists(n, 0, l, a, inputs, sums, in, out, last);                                    \
    }
ADD_LISTS(1) ADD_LISTS(2) ADD_LISTS(3) ADD_LISTS(4) ADD_LISTS(5) ADD_LISTS(6) ADD_LISTS(7)
ADD_LISTS(8)

static void convolve_lists(const lists *l, float *a, float *scratch)
{
    static void (*const kernels[])(const lists *, float *, const offset *, float *, int, int,
                                   int) = {add_lists_1, add_lists_2, add_lists_3, add_lists_4,
                                           add_lists_5, add_lists_6, add_lists_7, add_lists_8};
    const runs *r = &l->c.runs;
    offset *inputs = (offset *)scratch;
    float *sums = scratch + l->c.inputs * l->c.groups;
    if (l->wide)
        find_inputs(&l->c, inputs);
    for (int i = 0; i < r->count; i++) {
        block b;
        for (int at = 0; at < r->length; at += b.vectors * V) {
            b = next_block(r->length, at, MOST_BY_LISTS, V);
            kernels[b.vectors - 1](l, a, inputs, sums, i * r->in + b.at, i * r->out + b.at,
                                   b.last);
        }
    }
    finish_borders(&l->c, a);
}
