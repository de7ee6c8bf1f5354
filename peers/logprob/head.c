/* log-sum-exp of a language model's head and its gradient in one pass over the vocabulary, with AMX (see head.py).

   The matrix unit sums products of bf16 numbers in float32. Logits stay in the cache: those of 32 tokens and 32 rows
   until their exponentials are summed; with a gradient, those of CHUNK tokens and 32 rows until their exponentials are
   multiplied with the same tokens' weights. Everything is computed transposed, tokens by rows: the weights are then
   read in the order in which they are stored, and one vector register holds 16 rows, each with its own reference and
   sum.

   CHUNK, a multiple of 32, is defined on the compiler's command line. */

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING -1e30f /* below every logit, and finite */
#define TOO_FAR 60     /* above the reference: exponentials must stay finite in float32 */

/* A barrier: some compilers think that tile instructions read less memory than they do. */
#define WRITTEN __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t columns[16];
    uint8_t rows[16];
} tile_shapes;

static const tile_shapes shapes = {
    .palette = 1, .columns = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

static inline __m512 exp16(__m512 x) { /* of x <= 0, to 2 units in the last place; not below 1e-38 */
    x = _mm512_max_ps(_mm512_set1_ps(-87.3f), x); /* in this order NaN stays NaN */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), f);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static inline __m512i bf16_bits(__m512 x) { /* rounded to nearest even, in the upper half of each lane */
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    return _mm512_and_si512(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))),
                            _mm512_set1_epi32((int)0xffff0000));
}

static void transpose16(__m512i r[16]) { /* of 16 x 16 lanes of 32 bits */
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* r[4 g + i]: lanes 4 l + .. hold rows 4 g .. 4 g + 3 of column 4 l + i */
        const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    memcpy(r, t, sizeof t);
}

static inline __m512 exp2_16(__m512 x) { /* 2 to the power of x, to 2e-7; not below 1e-38 */
    x = _mm512_max_ps(_mm512_set1_ps(-126), x); /* in this order NaN stays NaN */
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); /* x - floor(x); 2^f by a least-maximum fit */
    __m512 p = _mm512_set1_ps(1.8775767e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.989341e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5826318e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4015361e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931531e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999994e-1f));
    return _mm512_scalef_ps(p, x); /* scales by 2^floor(x) */
}

/* State of 32 rows: their largest logits so far, and the sums of exp(logit - reference). */
typedef struct {
    __m512 reference[2], top[2], sum[2];
} running;

/* Adds the exponentials of z[first .. end). */
static inline __attribute__((always_inline)) void add(running *rows, const float *z, const float *bias, ptrdiff_t first,
                                                      ptrdiff_t end) {
    const __m512 log2_e = _mm512_set1_ps(1.44269504f);
    for (ptrdiff_t n = first; n < end; n++)
        for (int half = 0; half < 2; half++) {
            __m512 x = _mm512_load_ps(z + 32 * n + 16 * half);
            if (bias) x = _mm512_add_ps(x, _mm512_set1_ps(bias[n]));
            rows->top[half] = _mm512_max_ps(rows->top[half], x);
            const __m512 y = _mm512_mul_ps(_mm512_sub_ps(x, rows->reference[half]), log2_e);
            rows->sum[half] = _mm512_add_ps(rows->sum[half], exp2_16(y));
        }
}

/* z[32 tokens][32 rows] = head[token] . hidden[row]. Meanwhile adds the exponentials of the `count` tokens before them,
   so that the matrix unit and the vector units work at the same time. */
static inline void logits(float *z, const uint16_t *head, const uint16_t *hidden, ptrdiff_t size, running *rows,
                                  const float *before, const float *bias, ptrdiff_t count) {
    const uint16_t *a0 = head, *a1 = head + 16 * size, *b0 = hidden, *b1 = hidden + 16 * size;
    const ptrdiff_t steps = size / 32, share = (32 + steps - 1) / steps;
    running now = *rows;
    ptrdiff_t n = 0;
    WRITTEN;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (ptrdiff_t k = 0; k < size; k += 32) {
        _tile_loadd(4, a0 + k, size * 2);
        _tile_loadd(6, b0 + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + k * 16, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + k, size * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        const ptrdiff_t end = n + share < count ? n + share : count;
        add(&now, before, bias, n, end);
        n = end;
    }
    _tile_stored(0, z, 128);
    _tile_stored(1, z + 16, 128);
    _tile_stored(2, z + 512, 128);
    _tile_stored(3, z + 528, 128);
    WRITTEN;
    *rows = now;
}

/* The sums of 32 rows over a chunk, without keeping its logits: z holds two blocks of 32 tokens. The reference is the
   largest logit of an earlier chunk; a much larger logit becomes the new reference, and the chunk is computed again. */
static void sums(float *z, const uint16_t *head, const uint16_t *hidden, const float *bias, ptrdiff_t size,
                 ptrdiff_t tokens, ptrdiff_t real, float *reference, float *sum) {
    running rows = {{_mm512_loadu_ps(reference), _mm512_loadu_ps(reference + 16)}};
    for (;;) {
        running now = rows;
        for (int half = 0; half < 2; half++) now.top[half] = now.reference[half], now.sum[half] = _mm512_setzero_ps();
        for (ptrdiff_t n = 0; n < tokens; n += 32)
            logits(z + n % 64 * 32, head + n * size, hidden, size, &now, z + (n + 32) % 64 * 32,
                   bias ? bias + n - 32 : NULL, n ? 32 : 0);
        const ptrdiff_t last = tokens - 32;
        add(&now, z + last % 64 * 32, bias ? bias + last : NULL, 0, real - last);
        int again = 0;
        for (int half = 0; half < 2; half++) {
            const __m512 apart = _mm512_sub_ps(now.top[half], now.reference[half]);
            if (_mm512_cmp_ps_mask(apart, _mm512_set1_ps(TOO_FAR), _CMP_GT_OQ)) {
                again = 1;
                const __m512 scale = exp16(_mm512_sub_ps(now.reference[half], now.top[half]));
                _mm512_storeu_ps(sum + 16 * half, _mm512_mul_ps(_mm512_loadu_ps(sum + 16 * half), scale));
                rows.reference[half] = now.top[half];
            }
        }
        if (!again) {
            for (int half = 0; half < 2; half++) {
                _mm512_storeu_ps(reference + 16 * half, rows.reference[half]);
                _mm512_storeu_ps(sum + 16 * half, _mm512_add_ps(_mm512_loadu_ps(sum + 16 * half), now.sum[half]));
            }
            return;
        }
    }
}

/* With a gradient, for 16 of the 32 rows: adds the exponentials of z to their sum, and writes them as bf16, two tokens
   side by side, into p. Here the reference is always the largest logit: its exponential is then 1, which bf16 does not
   round. Returns the factor of the gradients so far (the sums have it already), since the reference has changed. */
static __m512 exponentials(float *z, const float *bias, ptrdiff_t tokens, ptrdiff_t real, float *top, float *sum,
                           uint32_t *p) {
    const __m512 old = _mm512_loadu_ps(top);
    __m512 m = old;
    for (ptrdiff_t n = 0; n < real; n++) {
        __m512 x = _mm512_load_ps(z + 32 * n);
        if (bias) {
            x = _mm512_add_ps(x, _mm512_set1_ps(bias[n]));
            _mm512_store_ps(z + 32 * n, x);
        }
        m = _mm512_max_ps(m, x);
    }
    for (ptrdiff_t n = real; n < tokens; n++) _mm512_store_ps(z + 32 * n, _mm512_set1_ps(NOTHING));
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    for (ptrdiff_t n = 0; n < tokens; n += 2) {
        const __m512 e0 = exp16(_mm512_sub_ps(_mm512_load_ps(z + 32 * n), m));
        const __m512 e1 = exp16(_mm512_sub_ps(_mm512_load_ps(z + 32 * n + 32), m));
        s0 = _mm512_add_ps(s0, e0);
        s1 = _mm512_add_ps(s1, e1);
        const __m512i both = _mm512_or_si512(_mm512_srli_epi32(bf16_bits(e0), 16), bf16_bits(e1));
        _mm512_store_si512(p + n / 2 * 16, both);
    }
    const __m512 scale = exp16(_mm512_sub_ps(old, m));
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_loadu_ps(sum), scale, _mm512_add_ps(s0, s1)));
    _mm512_storeu_ps(top, m);
    return scale;
}

/* w[size / 16][tokens / 32]: tiles of 16 inputs by 32 tokens, the chunk's weights transposed */
static void transpose(uint16_t *w, const uint16_t *head, ptrdiff_t size, ptrdiff_t tokens) {
    for (ptrdiff_t h = 0; h < size; h += 16)
        for (ptrdiff_t n = 0; n < tokens; n += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const uint16_t *at = head + (n + 2 * i) * size + h;
                const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
                const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at + size)));
                r[i] = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
            }
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_store_si512(w + (h * tokens + n * 16) + 32 * i, r[i]);
        }
}

/* gradient[input][32 of rows] += sum over tokens of w[input][token] p[token][row] */
static void add_products(float *gradient, ptrdiff_t rows, const uint16_t *w, const uint32_t *p0, const uint32_t *p1,
                         ptrdiff_t size, ptrdiff_t tokens) {
    WRITTEN;
    for (ptrdiff_t h = 0; h < size; h += 32) {
        float *c0 = gradient + h * rows, *c1 = c0 + 16 * rows;
        const uint16_t *a0 = w + h * tokens, *a1 = a0 + 16 * tokens;
        _tile_loadd(0, c0, rows * 4);
        _tile_loadd(1, c0 + 16, rows * 4);
        _tile_loadd(2, c1, rows * 4);
        _tile_loadd(3, c1 + 16, rows * 4);
        for (ptrdiff_t n = 0; n < tokens; n += 32) {
            _tile_loadd(4, a0 + n * 16, 64);
            _tile_loadd(6, p0 + n * 8, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, p1 + n * 8, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a1 + n * 16, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c0, rows * 4);
        _tile_stored(1, c0 + 16, rows * 4);
        _tile_stored(2, c1, rows * 4);
        _tile_stored(3, c1 + 16, rows * 4);
    }
}

/* hidden: [rows / 16][size / 2][16][2], bf16; head: [tokens][size], bf16; bias: [tokens] or NULL;
   top, sum: [rows], out: a logit (with a gradient the largest), and the sum of exp(logit - top);
   gradient: [size][rows], out: sum of exp(logit - top) head, or NULL. rows and size are multiples of 32.
   Returns 0, or 1 if there is too little memory. */
int logsumexp(const uint16_t *hidden, const uint16_t *head, const float *bias, ptrdiff_t rows, ptrdiff_t size,
              ptrdiff_t tokens, float *top, float *sum, float *gradient) {
    float *z = aligned_alloc(64, CHUNK * 32 * sizeof *z);
    uint32_t *p = gradient ? aligned_alloc(64, CHUNK * 16 * sizeof *p) : NULL;
    uint16_t *w = gradient ? aligned_alloc(64, CHUNK * size * sizeof *w) : NULL;
    uint16_t *last = aligned_alloc(64, CHUNK * size * sizeof *last); /* the last tokens and zeros, to whole tiles */
    const int failed = !z || !last || (gradient && (!p || !w));
    if (!failed) {
        _tile_loadconfig(&shapes);
        for (ptrdiff_t r = 0; r < rows; r++) top[r] = NOTHING, sum[r] = 0;
        if (gradient) memset(gradient, 0, size * rows * sizeof *gradient);
        for (ptrdiff_t n = 0; n < tokens; n += CHUNK) {
            const ptrdiff_t real = tokens - n < CHUNK ? tokens - n : CHUNK, whole = (real + 31) / 32 * 32;
            const uint16_t *chunk = head + n * size;
            if (real < whole) {
                memcpy(last, chunk, real * size * sizeof *last);
                memset(last + real * size, 0, (whole - real) * size * sizeof *last);
                chunk = last;
            }
            if (gradient) transpose(w, chunk, size, whole);
            for (ptrdiff_t r = 0; r < rows; r += 32) {
                if (!gradient) {
                    sums(z, chunk, hidden + r * size, bias ? bias + n : NULL, size, whole, real, top + r, sum + r);
                    continue;
                }
                running none = {0};
                for (ptrdiff_t i = 0; i < whole; i += 32)
                    logits(z + 32 * i, chunk + i * size, hidden + r * size, size, &none, NULL, NULL, 0);
                for (int half = 0; half < 2; half++) {
                    const ptrdiff_t at = r + 16 * half;
                    const __m512 scale = exponentials(z + 16 * half, bias ? bias + n : NULL, whole, real, top + at,
                                                      sum + at, p + half * CHUNK * 8);
                    if (n && _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1), _CMP_NEQ_OQ))
                        for (ptrdiff_t h = 0; h < size; h++) {
                            float *g = gradient + h * rows + at;
                            _mm512_storeu_ps(g, _mm512_mul_ps(_mm512_loadu_ps(g), scale));
                        }
                }
                add_products(gradient + r, rows, w, p, p + CHUNK * 8, size, whole);
            }
        }
        _tile_release();
    }
    free(z), free(p), free(w), free(last);
    return failed;
}
