/* One pixel to one pixel: scale and shift, the sum or product with another value, activation. */

typedef struct {
    planes in, other, out;
    int32_t count, length, operation; /* length: pixels of a plane, with those on its border */
    int32_t broadcast;                /* whether the other value has one pixel a plane */
    const float *scale, *shift;
    activation activation;
    codes codes;
    grid grid;
} map;

enum { ALONE, SUM, PRODUCT };

INLINE vec mapped(const map *m, vec x, vec other)
{
    if (m->operation == ALONE)
        return x;
    return m->operation == SUM ? x + other : x * other;
}

static void map_planes(const map *m, float *a)
{
    for (int c = 0; c < m->count; c++) {
        const float scale = m->scale ? m->scale[c] : 1, shift = m->shift ? m->shift[c] : 0;
        const float *x = a + plane(&m->in, c);
        const float *y = a + (m->operation ? plane(&m->other, c) : 0);
        const vec same = SPLAT(m->broadcast ? *y : 0);
        block b;
        for (int at = 0; at < m->length; at += b.vectors * V) {
            b = next_block(m->length, at, 4, V);
            vec sum[4];
            for (int k = 0; k < b.vectors; k++) {
                const int i = b.at + k * V;
                vec other = same;
                if (m->operation != ALONE && !m->broadcast)
                    other = LOAD(y + i);
                sum[k] = mapped(m, LOAD(x + i) * scale + shift, other);
            }
            switch (b.vectors) {
            case 1: activate(1, &m->activation, sum); break;
            case 2: activate(2, &m->activation, sum); break;
            case 3: activate(3, &m->activation, sum); break;
            case 4: activate(4, &m->activation, sum); break;
            }
            put(b.vectors, a, plane(&m->out, c) + (uint32_t)b.at, sum, b.last, &m->codes);
        }
    }
    complete(a, &m->out, m->count, &m->grid);
}
