/* Vectors of NAME_VECTOR floats: GCC's and Clang's vector types, or plain floats. */

#if defined(NAME_SCALAR) || !defined(__GNUC__)
#undef NAME_VECTOR
#define NAME_VECTOR 1
typedef float vec;
typedef float loose;
typedef uint32_t offset;
typedef uint32_t bits;
#define MASKED(x, mask) (*(mask) ? (x) : 0)
#ifdef __GNUC__
#define INLINE static inline __attribute__((unused))
#else
#define INLINE static inline
#endif
#define UNROLL
#define MAX(a, b) ((a) < (b) ? (b) : (a))
#define MIN(a, b) ((b) < (a) ? (b) : (a))
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
#endif

enum { V = NAME_VECTOR };

#define LOAD(from) (*(const loose *)(from))
#define STORE(to, value) (*(loose *)(to) = (value))
#define SPLAT(x) ((x) - (vec){0}) /* x + 0 would lose the sign of -0 */

INLINE bits bits_of(vec x)
{
    bits y;
    memcpy(&y, &x, sizeof y);
    return y;
}

INLINE vec floats_of(bits x)
{
    vec y;
    memcpy(&y, &x, sizeof y);
    return y;
}

/* e^x: x = n ln 2 + r, and the Taylor series of e^r up to r^7. Adding 1.5 * 2^23 rounds to whole
   numbers and leaves them in the lowest bits, from where they are added to the exponent. */
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
    return floats_of(bits_of(sum * r + 1) + (bits_of(n) << 23));
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
