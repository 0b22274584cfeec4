/* Vectors of NAME_VECTOR floats: GCC's and Clang's vector types, or plain floats. */

#if defined(NAME_SCALAR) || !defined(__GNUC__)
#undef NAME_VECTOR
#define NAME_VECTOR 1
typedef float vec;
typedef float loose;
typedef uint32_t offset;
typedef uint32_t bits, pairs;
#define MASKED(x, mask) (*(mask) ? (x) : 0)
#define INLINE static inline
#define UNROLL
#define MAX(a, b) ((a) < (b) ? (b) : (a))
#define MIN(a, b) ((b) < (a) ? (b) : (a))
#define LOWER_BYTES(x) ((x) & 0x00FF00FF)
#define UPPER_BYTES(x) ((x) >> 8 & 0x00FF00FF)
#define EVEN_SUMS(sum, upper) (sum)
#define KEEP(x)
INLINE bits load_bytes(const void *from)
{
    bits x;
    memcpy(&x, from, 4);
    return x;
}
INLINE void store_bytes(void *to, bits x)
{
    memcpy(to, &x, 4);
}
INLINE bits bits_of(vec x)
{
    bits y;
    memcpy(&y, &x, 4);
    return y;
}
INLINE vec floats_of(bits x)
{
    vec y;
    memcpy(&y, &x, 4);
    return y;
}
INLINE void interleave(vec *x)
{
    (void)x;
}
INLINE bits in_order(bits x)
{
    return x;
}
INLINE vec power_of_two(vec shifted, vec mantissa) /* mantissa * 2^n, where shifted = n + MAGIC */
{
    uint32_t n, bits;
    memcpy(&n, &shifted, 4);
    memcpy(&bits, &mantissa, 4);
    bits += n << 23;
    memcpy(&mantissa, &bits, 4);
    return mantissa;
}
#else
#ifndef NAME_VECTOR
#if defined(__AVX512F__)
#define NAME_VECTOR 16
#elif defined(__AVX__)
#define NAME_VECTOR 8
#else
#define NAME_VECTOR 4
#endif
#endif
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector leaves this file */
typedef float vec __attribute__((vector_size(4 * NAME_VECTOR)));
typedef float loose __attribute__((vector_size(4 * NAME_VECTOR), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * NAME_VECTOR)));
typedef uint32_t offset __attribute__((may_alias));
#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 16")
typedef uint32_t loose_bits
    __attribute__((vector_size(4 * NAME_VECTOR), aligned(4), may_alias));
typedef uint32_t loose_bytes
    __attribute__((vector_size(4 * NAME_VECTOR), aligned(1), may_alias));
typedef uint16_t pairs __attribute__((vector_size(4 * NAME_VECTOR)));
/* Bytes as lanes of two, 16 bits: sums of whole lanes, modulo 2^16, have the sums of upper bytes
   256 times in them; what is left are the sums of lower bytes. */
#define LOWER_BYTES(x) (x)
#define UPPER_BYTES(x) ((x) >> 8)
#define EVEN_SUMS(sum, upper) ((sum) - ((upper) << 8))
/* Otherwise GCC would rather load twice than keep a vector that is used twice. */
#if (defined(__AVX512BW__) && NAME_VECTOR == 16) || (defined(__AVX2__) && NAME_VECTOR == 8) ||      \
    (defined(__SSE2__) && NAME_VECTOR == 4)
#define KEEP(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__) && NAME_VECTOR == 4
#define KEEP(x) __asm__("" : "+w"(x))
#else
#define KEEP(x)
#endif
INLINE pairs load_bytes(const void *from)
{
    return (pairs)*(const loose_bytes *)from;
}
#define store_bytes(to, x) (*(loose_bytes *)(to) = (x))
INLINE bits bits_of(vec x)
{
    return (bits)x;
}
INLINE vec floats_of(bits x)
{
    return (vec)x;
}
#if NAME_VECTOR > 1
#ifdef __clang__
#define SHUFFLE(a, b, lanes) __extension__({ __typeof__(a) y;                                      \
    UNROLL for (unsigned i = 0; i < sizeof(a) / sizeof(a[0]); i++)                                 \
        y[i] = (lanes)[i] < sizeof(a) / sizeof(a[0]) ? (a)[(lanes)[i]]                             \
                                                     : (b)[(lanes)[i] - sizeof(a) / sizeof(a[0])]; \
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
#else
INLINE void interleave(vec *x)
{
    (void)x;
}
INLINE bits in_order(bits x)
{
    return x;
}
#endif
#define MASKED(x, mask) ((vec)((bits)(x) & *(const loose_bits *)(mask)))
#if defined(__AVX512F__) && NAME_VECTOR == 16 && !defined(__clang__) /* one instruction, not three */
#define MAX(a, b) ((vec)__builtin_ia32_maxps512_mask(b, a, a, -1, 4))
#define MIN(a, b) ((vec)__builtin_ia32_minps512_mask(b, a, a, -1, 4))
#else
INLINE vec chosen(bits mask, vec a, vec b)
{
    return (vec)((mask & (bits)a) | (~mask & (bits)b));
}
#define MAX(a, b) chosen((bits)((a) < (b)), b, a)
#define MIN(a, b) chosen((bits)((b) < (a)), b, a)
#endif
INLINE vec power_of_two(vec shifted, vec mantissa)
{
    return (vec)((bits)mantissa + ((bits)shifted << 23));
}
#endif

enum { V = NAME_VECTOR };

#define LOAD(from) (*(const loose *)(from))
#define STORE(to, value) (*(loose *)(to) = (value))
#define SPLAT(x) ((x) - (vec){0}) /* x + 0 would lose the sign of -0 */

/* e^x: x = n ln 2 + r, and the Taylor series of e^r up to r^7. Adding 1.5 * 2^23 rounds to whole
   numbers and leaves them in the lowest bits. */
INLINE vec exponential(vec x)
{
    const float magic = 12582912.0f;
    x = MAX(MIN(x, SPLAT(88.0f)), SPLAT(-87.0f));
    vec n = x * 1.44269504f + magic, whole = n - magic;
    vec r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    vec sum = r * (1 / 5040.0f) + 1 / 720.0f;
    sum = sum * r + 1 / 120.0f;
    sum = sum * r + 1 / 24.0f;
    sum = sum * r + 1 / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1;
    return power_of_two(n, sum * r + 1);
}

INLINE vec sigmoid(vec x)
{
    return 1 / (1 + exponential(-x));
}

INLINE vec error_function(vec x)
{
    float lanes[V];
    STORE(lanes, x);
    for (int i = 0; i < V; i++)
        lanes[i] = erff(lanes[i]);
    return LOAD(lanes);
}

/* What is done to a sum before it is stored. */
enum {
    IDENTITY, RELU, CLAMP, SIGMOID, SILU, HARDSIGMOID, HARDSWISH, TANH, LEAKY_RELU, ELU, GELU
};

typedef struct {
    int32_t kind;
    float low, high; /* bounds of CLAMP, slope of LEAKY_RELU, alpha of ELU */
} activation;

#define FOR_ALL(expression)                                                                        \
    for (int k = 0; k < count; k++) {                                                              \
        const vec y = x[k];                                                                        \
        x[k] = expression;                                                                         \
    }                                                                                              \
    break
static void activate_curved(const activation *f, vec *x, int count)
{
    const vec zero = SPLAT(0.0f), six = SPLAT(6.0f);
    switch (f->kind) {
    case SIGMOID:
        FOR_ALL(sigmoid(y));
    case SILU:
        FOR_ALL(y * sigmoid(y));
    case HARDSIGMOID:
        FOR_ALL(MAX(MIN(y + 3, six), zero) * (1 / 6.0f));
    case HARDSWISH:
        FOR_ALL(y * MAX(MIN(y + 3, six), zero) * (1 / 6.0f));
    case TANH:
        FOR_ALL(2 * sigmoid(2 * y) - 1);
    case LEAKY_RELU:
        FOR_ALL(MAX(y, zero) + f->low * MIN(y, zero));
    case ELU:
        FOR_ALL(MAX(y, zero) + f->low * (exponential(MIN(y, zero)) - 1));
    case GELU:
        FOR_ALL(y * 0.5f * (1 + error_function(y * 0.707106781f)));
    }
}

INLINE void activate(const int count, const activation *f, vec *x)
{
    if (f->kind == RELU) {
        UNROLL for (int k = 0; k < count; k++)
            x[k] = MAX(x[k], SPLAT(0.0f));
    } else if (f->kind == CLAMP) {
        UNROLL for (int k = 0; k < count; k++)
            x[k] = MAX(MIN(x[k], SPLAT(f->high)), SPLAT(f->low));
    } else if (f->kind != IDENTITY) {
        vec y[16]; /* in memory, so that x can stay in registers */
        for (int k = 0; k < count; k++)
            y[k] = x[k];
        activate_curved(f, y, count);
        for (int k = 0; k < count; k++)
            x[k] = y[k];
    }
}
