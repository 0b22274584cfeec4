/* Pooling: a row of column sums (or maxima), then the windows along it. */

typedef struct {
    int32_t kernel, stride, padding, dilation;
} window;

typedef struct {
    planes in, out;
    grid in_grid, out_grid;
    int32_t count, maximum, adaptive, with_padding; /* with_padding: zeros count for the average */
    float divisor;                                  /* 0: the number of pixels */
    window vertical, horizontal;
} pool;

typedef struct {
    int32_t from, to, size; /* size: as the average has it */
} range;

static range window_of(const window *w, const pool *p, int i, int outputs, int inputs)
{
    range r;
    if (p->adaptive) {
        r.from = i * inputs / outputs;
        r.to = ((i + 1) * inputs + outputs - 1) / outputs;
        r.size = r.to - r.from;
        return r;
    }
    r.from = i * w->stride - w->padding;
    r.to = r.from + (w->kernel - 1) * w->dilation + 1;
    const int padded = inputs + w->padding;
    r.size = (r.to < padded ? r.to : padded) - r.from;
    while (r.from < 0)
        r.from += w->dilation;
    r.to = r.to < inputs ? r.to : inputs;
    if (!p->with_padding)
        r.size = r.to - r.from;
    return r;
}

static void pool_planes(const pool *p, float *a, float *row)
{
    const grid *in = &p->in_grid, *out = &p->out_grid;
    for (int c = 0; c < p->count; c++)
        for (int i = 0; i < out->height; i++) {
            const range rows = window_of(&p->vertical, p, i, out->height, in->height);
            const float *x = a + plane(&p->in, c);
            float *y = a + plane(&p->out, c) + i * out->pitch;
            for (int j = 0; j < in->width; j++)
                row[j] = x[rows.from * in->pitch + j];
            for (int k = rows.from + p->vertical.dilation; k < rows.to; k += p->vertical.dilation) {
                const float *next = x + k * in->pitch;
                if (p->maximum)
                    for (int j = 0; j < in->width; j++)
                        row[j] = row[j] < next[j] ? next[j] : row[j];
                else
                    for (int j = 0; j < in->width; j++)
                        row[j] += next[j];
            }
            for (int j = 0; j < out->width; j++) {
                const range w = window_of(&p->horizontal, p, j, out->width, in->width);
                float sum = row[w.from];
                for (int k = w.from + p->horizontal.dilation; k < w.to;
                     k += p->horizontal.dilation)
                    sum = p->maximum ? (sum < row[k] ? row[k] : sum) : sum + row[k];
                if (!p->maximum)
                    sum /= p->divisor != 0 ? p->divisor : (float)(rows.size * w.size);
                y[j] = sum;
            }
        }
    complete(a, &p->out, p->count, out);
}
