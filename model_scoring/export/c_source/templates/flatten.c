/* Pixel after pixel, plane after plane, without borders. */

typedef struct {
    planes in;
    uint32_t out;
    int32_t count;
    grid grid;
} flatten;

static void flatten_planes(const flatten *f, float *a)
{
    float *to = a + f->out;
    for (int c = 0; c < f->count; c++)
        for (int i = 0; i < f->grid.height; i++, to += f->grid.width)
            memcpy(to, a + plane(&f->in, c) + i * f->grid.pitch,
                   sizeof(float) * (size_t)f->grid.width);
}
