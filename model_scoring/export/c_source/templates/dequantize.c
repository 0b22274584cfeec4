/* Codes become floats. */

typedef struct {
    planes in, out;
    grid in_grid, out_grid;
    int32_t count;
    float step;
} dequantize;

static void dequantize_planes(const dequantize *d, float *a)
{
    const grid *in = &d->in_grid, *out = &d->out_grid;
    for (int c = 0; c < d->count; c++)
        for (int i = 0; i < in->height; i++) {
            const uint8_t *x = (const uint8_t *)a + plane(&d->in, c) + i * in->pitch;
            float *y = a + plane(&d->out, c) + i * out->pitch;
            for (int j = 0; j < in->width; j++)
                y[j] = (float)(x[j] - in->zero) * d->step;
        }
    complete(a, &d->out, d->count, out);
}
