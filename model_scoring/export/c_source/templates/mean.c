/* Means of whole planes, whose borders are zeros. */

typedef struct {
    planes in, out;
    int32_t count, length;
    float pixels;
} mean;

static void average_planes(const mean *m, float *a)
{
    for (int c = 0; c < m->count; c++) {
        const float *x = a + plane(&m->in, c);
        vec sum = SPLAT(0.0f);
        float lanes[V], total = 0;
        int i = 0;
        for (; i + V <= m->length; i += V)
            sum += LOAD(x + i);
        STORE(lanes, sum);
        for (int k = 0; k < V; k++)
            total += lanes[k];
        for (; i < m->length; i++)
            total += x[i];
        a[plane(&m->out, c)] = total / m->pixels;
    }
}
