/* Activations lie in planes, one for each channel, with zeros around them: `rows` rows above and
   below, and `columns` columns after each row, which are the next row's zeros on the left, too.
   So each tap of a filter reads at one constant distance from the output's pixel. */

typedef struct { /* where the first pixels of planes are, in floats */
    uint32_t first, step;
    const uint32_t *table; /* instead, where the steps differ */
} planes;

typedef struct {
    int32_t height, width, pitch, rows, columns;
} grid;

/* Pixels that follow each other in memory, for input and output alike: the whole plane in one run
   if their pitches are equal (what falls on the border is cleared later), else row by row. */
typedef struct {
    int32_t count, length, in, out; /* the last two: from a run to the next */
} runs;

INLINE uint32_t plane(const planes *p, int i)
{
    return p->table ? p->table[i] : p->first + (uint32_t)i * p->step;
}

static void clear_borders(float *a, const planes *out, int count, const grid *g)
{
    const int gap = g->pitch - g->width, below = g->rows * g->pitch + gap;
    if (below == 0)
        return;
    memset(a + plane(out, 0) - below, 0, sizeof(float) * (size_t)below);
    for (int c = 0; c < count; c++) {
        float *row = a + plane(out, c) + g->width;
        for (int i = 1; i < g->height; i++, row += g->pitch)
            for (int j = 0; j < gap; j++)
                row[j] = 0;
        memset(row, 0, sizeof(float) * (size_t)below);
    }
}

INLINE void store_all(const int count, float *to, const vec *x, int last)
{
    UNROLL for (int k = 0; k + 1 < count; k++)
        STORE(to + k * V, x[k]);
    to += (count - 1) * V;
    if (last == V) {
        STORE(to, x[count - 1]);
    } else {
        float lanes[V];
        STORE(lanes, x[count - 1]);
        for (int i = 0; i < last; i++)
            to[i] = lanes[i];
    }
}

/* From a run's pixel `at` on, how many vectors come next: as equal as blocks of at most `most` can
   be. Where the last one would be cut off, the block moves back and computes a few pixels twice. */
typedef struct {
    int32_t at, vectors, last; /* last: pixels of the last vector */
} block;

INLINE block next_block(int length, int at, int most)
{
    const int left = (length - at + V - 1) / V, blocks = (left + most - 1) / most;
    block b = {at, (left + blocks - 1) / blocks, V};
    if (at + b.vectors * V > length) {
        if (b.vectors * V <= length)
            b.at = length - b.vectors * V;
        else
            b.last = length - at - (b.vectors - 1) * V;
    }
    return b;
}
