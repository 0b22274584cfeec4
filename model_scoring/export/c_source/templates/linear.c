/* Linear layers, and convolutions of images of one pixel: a dot product for each output. */

typedef struct {
    planes in, out, add;
    int32_t inputs, outputs, adds;
    int32_t zero; /* of inputs that are bytes; -1: they are floats */
    const float *weight; /* (outputs, inputs); NULL: lists of inputs, as in lists.c */
    const float *scale, *bias;
    activation activation;
    int32_t values;
    const float *value;
    const uint16_t *count, *list;
} linear;

INLINE float sum_of(vec x)
{
    float lanes[V], sum = 0;
    STORE(lanes, x);
    for (int i = 0; i < V; i++)
        sum += lanes[i];
    return sum;
}

static float product(const float *weight, const float *x, int count)
{
    vec sum[4] = {SPLAT(0.0f), SPLAT(0.0f), SPLAT(0.0f), SPLAT(0.0f)};
    int i = 0;
    for (; i + 4 * V <= count; i += 4 * V)
        UNROLL for (int k = 0; k < 4; k++)
            sum[k] += LOAD(weight + i + k * V) * LOAD(x + i + k * V);
    for (; i + V <= count; i += V)
        sum[0] += LOAD(weight + i) * LOAD(x + i);
    float result = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; i < count; i++)
        result += weight[i] * x[i];
    return result;
}

static float list_sum(const uint16_t *list, int count, const float *x)
{
    float sum[4] = {0};
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++)
            sum[k] += x[list[i + k]];
    for (; i < count; i++)
        sum[0] += x[list[i]];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void multiply_vector(const linear *l, float *a, float *scratch)
{
    const uint16_t *list = l->list, *count = l->count;
    for (int i = 0; i < l->inputs; i++)
        scratch[i] = l->zero < 0 ? a[plane(&l->in, i)]
                                 : (float)(((const uint8_t *)a)[plane(&l->in, i)] - l->zero);
    for (int o = 0; o < l->outputs; o++) {
        float sum = 0;
        if (l->weight)
            sum = product(l->weight + (size_t)o * (size_t)l->inputs, scratch, l->inputs);
        for (int v = 0; v < l->values; v++, list += *count++)
            sum += list_sum(list, *count, scratch) * l->value[v];
        vec y = SPLAT((l->scale ? sum * l->scale[o] : sum) + l->bias[o]);
        if (l->adds)
            y += a[plane(&l->add, o)];
        activate(1, &l->activation, &y);
        store_all(1, a + plane(&l->out, o), &y, 1);
    }
}
