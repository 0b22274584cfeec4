/* Activations lie in planes, one for each channel, with rows of zeros above and below them, so that
   each tap of a filter reads at one constant distance from the output's pixel. To the left and right
   there are either columns of zeros, the right ones of a row being the left ones of the next; or each
   plane has copies, shifted by a pixel with zeros at the edge, so that all loads are of whole cache
   lines (others take twice as long). */

typedef struct { /* where the first pixels of planes are, in floats */
    uint32_t first, step;
    const uint32_t *table; /* instead, where the steps differ */
} planes;

typedef struct {
    int32_t height, width, pitch;
    int32_t before;       /* zeros before the first pixel of all */
    int32_t copies;       /* the plane itself is the first one */
    const int32_t *copy;  /* their distances from it, then their shifts, then the zeros after each */
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

enum { MOST_WIDTH = 128, MOST_COPIES = 8 }; /* of planes with copies */

INLINE void clear(float *to, int count)
{
    for (; count >= V; count -= V, to += V)
        STORE(to, SPLAT(0.0f));
    for (volatile float *rest = to; count > 0; count--) /* memset would be a slow call */
        *rest++ = 0;
}

/* A copy that is shifted by dx: to[j] = from[j + dx], or 0 outside of the row, as a mask says. */
INLINE void copy_shifted(const float *from, float *to, int run, int width, const uint32_t *inside)
{
    int at = 0, column = 0;
    if (V % width == 0)
        for (; at + V <= run; at += V)
            STORE(to + at, MASKED(LOAD(from + at), inside));
    for (; at + V <= run; at += V) {
        STORE(to + at, MASKED(LOAD(from + at), inside + column));
        for (column += V; column >= width;)
            column -= width;
    }
    for (; at < run; at++)
        to[at] = inside[at % width] ? from[at] : 0;
}

INLINE void find_inside(uint32_t *inside, int width, int dx)
{
    for (int j = 0; j < width; j++)
        inside[j] = j + dx < 0 || j + dx >= width ? 0 : ~(uint32_t)0;
    for (int j = 0; j < V; j++)
        inside[width + j] = inside[j]; /* which goes on where V is larger than the width, too */
}

/* What belongs to planes whose pixels are written: zeros around them, and copies. */
static void complete(float *a, const planes *out, int count, const grid *g)
{
    const int run = (g->height - 1) * g->pitch + g->width, gap = g->pitch - g->width;
    const int32_t *shift = g->copy + g->copies, *after = shift + g->copies;
    uint32_t inside[MOST_COPIES][MOST_WIDTH + V];
    if (g->before == 0 && g->copies == 1)
        return;
    for (int k = 1; k < g->copies; k++)
        find_inside(inside[k], g->width, shift[k]);
    clear(a + plane(out, 0) - g->before, g->before);
    for (int c = 0; c < count; c++) {
        float *first = a + plane(out, c);
        for (int i = 1; gap && i < g->height; i++)
            for (int j = 0; j < gap; j++)
                first[i * g->pitch - gap + j] = 0;
        clear(first + run, after[0]);
        for (int k = 1; k < g->copies; k++) {
            copy_shifted(first + shift[k], first + g->copy[k], run, g->width, inside[k]);
            clear(first + g->copy[k] + run, after[k]);
        }
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
