/* Convolutions with weights in full precision: four filters (or one) by some vectors of pixels are
   in registers at a time, each weight is broadcast. */

typedef struct {
    convolution c;
    const float *weight; /* (groups, filters / 4, inputs, 4), then the filters that are left */
} dense;

#if NAME_VECTOR == 1
enum { MOST_BY_FOUR = 2 };
#elif defined(__AVX512F__) || defined(__aarch64__)
enum { MOST_BY_FOUR = 6 }; /* 24 of 32 registers are sums */
#else
enum { MOST_BY_FOUR = 3 };
#endif

INLINE void multiply(const int filters, const int n, const dense *d, float *a, const offset *inputs,
                     const float *weight, int f, int in, int out, int last)
{
    vec sum[4][8];
    const float *x = a + in;
    UNROLL for (int o = 0; o < filters; o++)
        UNROLL for (int k = 0; k < n; k++)
            sum[o][k] = SPLAT(0.0f);
    for (int i = 0; i < d->c.inputs; i++, weight += filters) {
        const float *pixels = x + inputs[i];
        UNROLL for (int k = 0; k < n; k++) {
            const vec pixel = LOAD(pixels + k * V);
            UNROLL for (int o = 0; o < filters; o++)
                sum[o][k] += pixel * weight[o];
        }
    }
    UNROLL for (int o = 0; o < filters; o++)
        finish(n, sum[o], &d->c, f + o, a, out, last);
}

#define MULTIPLY(filters, n)                                                                       \
    static void multiply_##filters##_##n(const dense *d, float *a, const offset *inputs,           \
                                         const float *weight, int f, int in, int out, int last)    \
    {                                                                                              \
        multiply(filters, n, d, a, inputs, weight, f, in, out, last);                              \
    }
MULTIPLY(1, 1) MULTIPLY(1, 2) MULTIPLY(1, 3) MULTIPLY(1, 4) MULTIPLY(1, 5) MULTIPLY(1, 6)
MULTIPLY(4, 1) MULTIPLY(4, 2) MULTIPLY(4, 3) MULTIPLY(4, 4) MULTIPLY(4, 5) MULTIPLY(4, 6)

static void convolve_dense(const dense *d, float *a, float *scratch)
{
    typedef void kernel(const dense *, float *, const offset *, const float *, int, int, int, int);
    static kernel *const ones[] = {multiply_1_1, multiply_1_2, multiply_1_3,
                                   multiply_1_4, multiply_1_5, multiply_1_6};
    static kernel *const fours[] = {multiply_4_1, multiply_4_2, multiply_4_3,
                                    multiply_4_4, multiply_4_5, multiply_4_6};
    const convolution *c = &d->c;
    const runs *r = &c->runs;
    const int filters = c->filters / c->groups, most = filters < 4 ? 6 : MOST_BY_FOUR;
    offset *inputs = (offset *)scratch;
    find_inputs(c, inputs);
    for (int i = 0; i < r->count; i++) {
        block b;
        for (int at = 0; at < r->length; at += b.vectors * V) {
            b = next_block(r->length, at, most, V);
            const int in = i * r->in + b.at, out = i * r->out + b.at, n = b.vectors - 1;
            const float *weight = d->weight;
            for (int f = 0; f < c->filters;) {
                const int step = filters - f % filters < 4 ? 1 : 4;
                const offset *group = inputs + (size_t)(f / filters) * (size_t)c->inputs;
                (step == 4 ? fours : ones)[n](d, a, group, weight, f, in, out, b.last);
                weight += step * c->inputs;
                f += step;
            }
        }
    }
    finish_borders(c, a);
}
