/* Activations lie in planes, one for each channel, with rows of zeros above and below them, so that
   each tap of a filter reads at one constant distance from the output's pixel. To the left and right
   there are either columns of zeros, the right ones of a row being the left ones of the next; or each
   plane has copies, shifted by a pixel with zeros at the edge, so that all loads are of whole cache
   lines (others take twice as long). */

typedef struct { /* where the first pixels of planes are, in pixels: floats or bytes */
    uint32_t first, step;
    const uint32_t *table; /* instead, where the steps differ */
} planes;

typedef struct {
    int32_t height, width, pitch;
    int32_t before;       /* zeros before the first pixel of all */
    int32_t zero;         /* the byte that stands for 0; -1: pixels are floats */
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

/* Codes of a quantizer, as bytes: a whole number plus an offset, which stands for 0. */
typedef struct {
    float inverse, zero, low, high; /* of the step, or 0: floats; the others are 2^23 more */
} codes;

/* Above 2^23 floats are whole numbers: adding rounds, halves to even, and the lowest byte is it. NaN,
   as what nothing has written on a border may be, becomes `low`: it must not reach other bytes. */
INLINE vec quantized(vec x, const codes *q)
{
    const vec shifted = x * q->inverse + q->zero;
    return MIN(MAX(SPLAT(q->low), shifted), SPLAT(q->high));
}

INLINE void clear_bytes(uint8_t *to, int count, int zero)
{
    const uint64_t many = (uint64_t)zero * 0x0101010101010101u;
    const bits all = (uint32_t)many + (bits){0};
    for (; count >= W; count -= W, to += W)
        store_bytes(to, all);
    for (; count >= 8; count -= 8, to += 8)
        memcpy(to, &many, 8);
    for (volatile uint8_t *rest = to; count > 0; count--)
        *rest++ = (uint8_t)zero;
}

/* As copy_shifted and find_inside, with something else than 0 outside of a row. */
INLINE void copy_bytes(const uint8_t *from, uint8_t *to, int run, int width, const uint8_t *inside,
                       const uint8_t *fill)
{
    int at = 0, column = 0;
    for (; at + W <= run; at += W) {
        const bits x = (bits)load_bytes(from + at) & (bits)load_bytes(inside + column);
        store_bytes(to + at, x | (bits)load_bytes(fill + column));
        for (column += W; column >= width;)
            column -= width;
    }
    for (; at < run; at++, column++)
        to[at] = (uint8_t)((from[at] & inside[column]) | fill[column]);
}

INLINE void find_bytes_inside(uint8_t *inside, uint8_t *fill, int width, int dx, int zero)
{
    for (int j = 0; j < width; j++)
        inside[j] = j + dx < 0 || j + dx >= width ? 0 : 255;
    for (int j = 0; j < W; j++)
        inside[width + j] = inside[j];
    for (int j = 0; j < width + W; j++)
        fill[j] = (uint8_t)(zero & ~inside[j]);
}

static void complete_bytes(uint8_t *a, const planes *out, int count, const grid *g)
{
    const int run = (g->height - 1) * g->pitch + g->width, gap = g->pitch - g->width;
    const int32_t *shift = g->copy + g->copies, *after = shift + g->copies;
    uint8_t inside[MOST_COPIES][MOST_WIDTH + W], fill[MOST_COPIES][MOST_WIDTH + W];
    for (int k = 1; k < g->copies; k++)
        find_bytes_inside(inside[k], fill[k], g->width, shift[k], g->zero);
    clear_bytes(a + plane(out, 0) - g->before, g->before, g->zero);
    for (int c = 0; c < count; c++) {
        uint8_t *first = a + plane(out, c);
        for (int i = 1; gap && i < g->height; i++)
            for (int j = 0; j < gap; j++)
                first[i * g->pitch - gap + j] = (uint8_t)g->zero;
        clear_bytes(first + run, after[0], g->zero);
        for (int k = 1; k < g->copies; k++) {
            copy_bytes(first + shift[k], first + g->copy[k], run, g->width, inside[k], fill[k]);
            clear_bytes(first + g->copy[k] + run, after[k], g->zero);
        }
    }
}

/* What belongs to planes whose pixels are written: zeros around them, and copies. */
static void complete(float *a, const planes *out, int count, const grid *g)
{
    if (g->zero >= 0) {
        complete_bytes((uint8_t *)a, out, count, g);
        return;
    }
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

/* The lowest bytes of four vectors, side by side. */
INLINE bits packed(const vec *x)
{
    return (bits_of(x[0]) ^ 0x4B000000) | bits_of(x[1]) << 8 | bits_of(x[2]) << 16 |
           bits_of(x[3]) << 24;
}

INLINE void store_some_bytes(uint8_t *to, bits x, int count)
{
    uint8_t bytes[W];
    if (count == W) {
        store_bytes(to, x);
    } else {
        store_bytes(bytes, x);
        for (int i = 0; i < count; i++)
            to[i] = bytes[i];
    }
}

INLINE void store_codes(const int count, uint8_t *to, const vec *x, int last, const codes *q)
{
    UNROLL for (int k = 0; k < count; k += 4) {
        vec y[4];
        UNROLL for (int i = 0; i < 4; i++)
            y[i] = quantized(x[k + i < count ? k + i : k], q);
        const int vectors = count - k < 4 ? count - k : 4;
        store_some_bytes(to + k * V, in_order(packed(y)),
                         k + 4 < count ? W : (vectors - 1) * V + last);
    }
}

/* Pixels of a plane from some place on, as floats or codes. */
INLINE void put(const int count, float *a, uint32_t at, const vec *x, int last, const codes *q)
{
    if (q->inverse == 0)
        store_all(count, a + at, x, last);
    else
        store_codes(count, (uint8_t *)a + at, x, last, q);
}

/* From a run's pixel `at` on, how many vectors, of `wide` pixels each, come next: as equal as blocks
   of at most `most` can be. Where the last one would be cut off, the block moves back and computes a
   few pixels twice. */
typedef struct {
    int32_t at, vectors, last; /* last: pixels of the last vector */
} block;

INLINE block next_block(int length, int at, int most, int wide)
{
    const int left = (length - at + wide - 1) / wide, blocks = (left + most - 1) / most;
    block b = {at, (left + blocks - 1) / blocks, wide};
    if (at + b.vectors * wide > length) {
        if (b.vectors * wide <= length)
            b.at = length - b.vectors * wide;
        else
            b.last = length - at - (b.vectors - 1) * wide;
    }
    return b;
}
