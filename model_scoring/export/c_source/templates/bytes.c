/* Bytes: a vector has 4 V of them, which are added as lanes of 16 bits. */

enum { W = 4 * V };

/* Two bytes are a lane. Sums of whole lanes, modulo 2^16, have the sums of upper bytes 256 times in
   them; what is left are the sums of lower bytes. */
#if NAME_VECTOR == 1
typedef bits pairs;
#define LOWER_BYTES(x) ((x) & 0x00FF00FF)
#define UPPER_BYTES(x) ((x) >> 8 & 0x00FF00FF)
#define EVEN_SUMS(sum, upper) (sum)
#else
typedef uint16_t pairs __attribute__((vector_size(4 * NAME_VECTOR)));
#define LOWER_BYTES(x) (x)
#define UPPER_BYTES(x) ((x) >> 8)
#define EVEN_SUMS(sum, upper) ((sum) - ((upper) << 8))
#endif

INLINE pairs load_bytes(const void *from)
{
    pairs x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_bytes(void *to, bits x)
{
    memcpy(to, &x, sizeof x);
}

/* Otherwise GCC would rather load twice than keep a vector that is used twice. */
#if (defined(__AVX512BW__) && NAME_VECTOR == 16) || (defined(__AVX2__) && NAME_VECTOR == 8) ||      \
    (defined(__SSE2__) && NAME_VECTOR == 4)
#define KEEP(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__) && NAME_VECTOR == 4
#define KEEP(x) __asm__("" : "+w"(x))
#else
#define KEEP(x)
#endif

#if NAME_VECTOR == 1
INLINE void interleave(vec *x)
{
    (void)x;
}

INLINE bits in_order(bits x)
{
    return x;
}
#else
#ifdef __clang__
#define LANES(a) (sizeof(a) / sizeof((a)[0]))
#define SHUFFLE(a, b, lanes) __extension__({ __typeof__(a) y;                                      \
    UNROLL for (unsigned i = 0; i < LANES(y); i++)                                                 \
        y[i] = (unsigned)(lanes)[i] < LANES(y) ? (a)[(lanes)[i]] : (b)[(lanes)[i] - LANES(y)];     \
    y; })
#else
#define SHUFFLE(a, b, lanes) __builtin_shuffle(a, b, lanes)
#endif

/* Lanes of the halves of a and b in turns. */
INLINE vec zip(vec a, vec b, unsigned half)
{
    bits lanes;
    UNROLL for (unsigned i = 0; i < NAME_VECTOR; i++)
        lanes[i] = i % 2 * NAME_VECTOR + half * (NAME_VECTOR / 2) + i / 2;
    return SHUFFLE(a, b, lanes);
}

/* Four vectors, of every fourth pixel each, become four of pixels in their order. */
INLINE void interleave(vec *x)
{
    const vec a = zip(x[0], x[2], 0), b = zip(x[1], x[3], 0);
    const vec c = zip(x[0], x[2], 1), d = zip(x[1], x[3], 1);
    x[0] = zip(a, b, 0), x[1] = zip(a, b, 1), x[2] = zip(c, d, 0), x[3] = zip(c, d, 1);
}

/* First bytes of all lanes, then second ones, and so on. */
INLINE bits in_order(bits x)
{
    typedef uint8_t bytes __attribute__((vector_size(4 * NAME_VECTOR)));
    bytes lanes;
    for (unsigned i = 0; i < 4 * NAME_VECTOR; i++)
        lanes[i] = (uint8_t)(i % NAME_VECTOR * 4 + i / NAME_VECTOR);
    return (bits)SHUFFLE((bytes)x, (bytes)x, lanes);
}
#endif
