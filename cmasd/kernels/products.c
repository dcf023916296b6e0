/* ------------------------------------------------------------------ products

   y = x w + bias for weights that serve again and again. They are packed in strips of LANES outputs, [input][output],
   and COLUMNS strips are read at once, each from front to back (the processor fetches ahead in each of them): with few
   rows that reading is all that a product costs. So weights that are numbers of 16 bits by nature are kept as such and
   widened on the way: half the bytes, the same product. In 8 bits, with a scale per output, it is another product: where
   the processor multiplies bytes, of inputs that are rounded too, with a scale per row; else of the inputs as they are.
   Processors that multiply tiles do so (`tiles.c`).
   Each sum goes over the inputs in order, whatever rows are beside it. What usually follows a product is done on the
   way out: an activation, or the residual that is added and the layer norm over both. */

#ifdef __AVX512F__
#define VECTOR 64
#define COLUMNS 4
#else
#define VECTOR 32
#define COLUMNS 2
#endif
#define LANES ((int64_t)(VECTOR / sizeof(REAL)))
#define PANEL (COLUMNS * LANES)
#define TILE 6  /* rows whose sums fit into the registers */
#define TILES 8 /* that one thread takes at a time */

enum { FULL, FLOAT16, BFLOAT16, INT8, INT4, PAIRED }; /* how weights are stored */
enum { NONE, RELU, GELU, SILU, GELU_TANH };

struct norm {
    const REAL *gain, *offset;
    double epsilon;
};

struct layer {
    const char *weights;
    const REAL *bias, *scales; /* scales of INT8, and of INT4, which have them in 16 bits; */
    const int32_t *offsets;    /* of INT8: minus ZERO times the sum of an output's weights, where inputs are rounded */
    const struct norm *norm;   /* null without one */
    int64_t format, in, out, activation;
};

typedef REAL vector __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
const int64_t lanes = LANES, panel = PANEL;

#ifdef NARROW /* formats narrower than REAL, which is float */
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint32_t words __attribute__((vector_size(VECTOR)));

#ifdef __AVX512F__ /* compilers do not find these by themselves */
#define FROM_FLOAT16(WEIGHTS) (vector)_mm512_cvtph_ps(_mm256_loadu_si256(WEIGHTS))
#define FROM_BFLOAT16(WEIGHTS) (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(WEIGHTS)), 16)
#define FROM_INT8(WEIGHTS) (vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(WEIGHTS)))
#elif defined(__AVX2__) && defined(__F16C__)
#define FROM_FLOAT16(WEIGHTS) (vector)_mm256_cvtph_ps(_mm_loadu_si128(WEIGHTS))
#define FROM_BFLOAT16(WEIGHTS) (vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(WEIGHTS)), 16)
#define FROM_INT8(WEIGHTS) (vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(WEIGHTS)))
#else
#define FROM_BFLOAT16(WEIGHTS) (vector)(__builtin_convertvector(*(const halves *)WEIGHTS, words) << 16)
#define FROM_INT8(WEIGHTS) __builtin_convertvector(*(const bytes *)WEIGHTS, vector)
#endif
const int64_t reads_bfloat16 = 1;
#else
const int64_t reads_bfloat16 = 0;
#endif
#ifdef FROM_FLOAT16
const int64_t reads_float16 = 1;
#else
const int64_t reads_float16 = 0;
#endif

#if defined(NARROW) && defined(__AVX512VNNI__) /* INT8 strips are [quad of inputs][output][input] */
#define QUAD 4
#define ZERO 128 /* what a rounded input of 0 is */
typedef int32_t ints __attribute__((vector_size(VECTOR), may_alias));
#define DOT(SUMS, X, WEIGHTS) (ints)_mm512_dpbusd_epi32((__m512i)(SUMS), (__m512i)(X), (__m512i)(WEIGHTS))
const int64_t quad = QUAD, zero = ZERO;
#else
const int64_t quad = 1, zero = 0;
#endif

static inline __attribute__((always_inline)) vector widened(const void *weights, int format)
{
#ifdef FROM_FLOAT16
    if (format == FLOAT16) return FROM_FLOAT16(weights);
#endif
#ifdef NARROW
    if (format == BFLOAT16) return FROM_BFLOAT16(weights);
    if (format == INT8) return FROM_INT8(weights);
#endif
    return *(const vector *)weights;
}

static void activate(int64_t activation, int64_t count, REAL *y)
{
    if (activation == RELU)
        for (int64_t i = 0; i < count; i++) y[i] = y[i] > 0 ? y[i] : 0;
    if (activation == GELU)
        for (int64_t i = 0; i < count; i++) y[i] *= (REAL)0.5 * (1 + ERF(y[i] * (REAL)0.70710678118654752));
    if (activation == SILU)
        for (int64_t i = 0; i < count; i++) y[i] /= 1 + EXP(-y[i]);
    if (activation == GELU_TANH) /* y / 2 * (1 + tanh u) is y / (1 + exp(-2u)) */
        for (int64_t i = 0; i < count; i++)
            y[i] /= 1 + EXP((REAL)-1.5957691216057308 * (y[i] + (REAL)0.044715 * y[i] * y[i] * y[i]));
}

/* One row of a panel on its way out. */
static inline __attribute__((always_inline)) void put(const struct layer *layer, int64_t first, const vector *sums, REAL *y)
{
    int64_t left = layer->out - first, count = left < PANEL ? left : PANEL;
    if (count == PANEL) memcpy(y + first, sums, PANEL * sizeof(REAL));
    else memcpy(y + first, sums, count * sizeof(REAL));
    if (layer->activation) activate(layer->activation, count, y + first);
}

static inline __attribute__((always_inline)) void product_tile(
    int format, int64_t rows, const struct layer *layer, int64_t first, const REAL *x, int64_t stride, REAL *y)
{
    const int64_t in = layer->in, out = layer->out, size = format == FULL ? sizeof(REAL) : format == INT8 ? 1 : 2;
    const char *weights = layer->weights + first * in * size;
    const vector *bias = (const vector *)(layer->bias + first), *scales = (const vector *)(layer->scales + first);
    vector sums[TILE][COLUMNS], column[COLUMNS];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] = format == INT8 ? (vector){0} : bias[c];
    for (int64_t i = 0; i < in; i++) {
        for (int64_t c = 0; c < COLUMNS; c++) column[c] = widened(weights + (c * in + i) * LANES * size, format);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] += x[r * stride + i] * column[c];
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < COLUMNS; c++) {
            column[c] = sums[r][c];
            if (format == INT8) column[c] = column[c] * scales[c] + bias[c];
        }
        put(layer, first, column, y + r * out);
    }
}

/* Products of the same inputs, side by side: threads meet once for all of them. */
struct target {
    const struct layer *layer;
    REAL *y;
};

static int64_t panels_of(const struct target *targets, int64_t joined)
{
    int64_t panels = 0;
    for (int64_t i = 0; i < joined; i++) panels += (targets[i].layer->out + PANEL - 1) / PANEL;
    return panels;
}

/* Whose panel this one of all is, and which of its own. */
static const struct target *target_of(const struct target *target, int64_t *panel)
{
    for (int64_t own; own = (target->layer->out + PANEL - 1) / PANEL, *panel >= own; target++) *panel -= own;
    return target;
}

/* How tasks of a product are dealt to threads, by each of them. Evenly beforehand costs least; but where a processor is
   taken away for a while, whoever has it left must wait. With weights enough that dealing does not count, as they come. */
#define HEAVY_BYTES (1 << 22)
#define DEALT 4 /* tasks at a time */

static void deal(const struct target *targets, int64_t panels)
{
    const int64_t bits[] = {8 * sizeof(REAL), 16, 16, 8, 4, 16};
    const int is_heavy = panels * PANEL * targets->layer->in * bits[targets->layer->format] >= 8 * HEAVY_BYTES;
    omp_set_schedule(is_heavy ? omp_sched_dynamic : omp_sched_static, is_heavy ? DEALT : 0);
}

#ifdef QUAD
/* A row's inputs to bytes of which ZERO is none; returns what one of them is. */
static REAL round_row(const REAL *x, int64_t in, uint8_t *bytes)
{
    REAL top = 0;
    for (int64_t i = 0; i < in; i++) top = FABS(x[i]) > top ? FABS(x[i]) : top;
    const REAL each = top > (REAL)1e-30 ? top / 127 : 1, scale = 1 / each;
    for (int64_t i = 0; i < in; i++) bytes[i] = (uint8_t)(int32_t)(x[i] * scale + (ZERO + (REAL)0.5));
    for (int64_t i = in; i % QUAD; i++) bytes[i] = ZERO;
    return each;
}

static inline __attribute__((always_inline)) void rounded_tile(
    int64_t rows, const struct layer *layer, int64_t first, const uint8_t *x, const REAL *each, REAL *y)
{
    const int64_t quads = (layer->in + QUAD - 1) / QUAD, out = layer->out;
    const char *weights = layer->weights + first * quads * QUAD;
    const vector *bias = (const vector *)(layer->bias + first), *scales = (const vector *)(layer->scales + first);
    ints sums[TILE][COLUMNS], strip[COLUMNS];
    vector column[COLUMNS];
    for (int64_t r = 0; r < rows; r++) memcpy(sums[r], layer->offsets + first, sizeof sums[r]);
    for (int64_t i = 0; i < quads; i++) {
        for (int64_t c = 0; c < COLUMNS; c++) strip[c] = (ints)_mm512_loadu_si512(weights + (c * quads + i) * VECTOR);
        for (int64_t r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + (r * quads + i) * QUAD, QUAD);
            for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] = DOT(sums[r][c], (ints){0} + four, strip[c]);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < COLUMNS; c++) {
            vector scale = scales[c] * each[r];
            __asm__("" : "+v"(scale)); /* the compiler would order these products by the number of rows */
            column[c] = __builtin_convertvector(sums[r][c], vector) * scale + bias[c];
        }
        put(layer, first, column, y + r * out);
    }
}

/* All panels of `targets`, dealt out; of each panel all `count` rows, in tiles as even as can be: CASE calls by rows. */
#define SHARE_PANELS(CASE)                                                                                             \
    deal(targets, panels);                                                                                             \
    _Pragma("omp for schedule(runtime) nowait")                                                                        \
    for (int64_t panel = 0; panel < panels; panel++) {                                                                 \
        int64_t own = panel;                                                                                           \
        const struct target *target = target_of(targets, &own);                                                        \
        const struct layer *layer = target->layer;                                                                     \
        REAL *y = target->y + done * layer->out;                                                                       \
        const int64_t first = own * PANEL, tiles = (count + TILE - 1) / TILE;                                          \
        for (int64_t tile = 0, row = 0; tile < tiles; tile++)                                                          \
            switch ((count - row) / (tiles - tile)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }                \
    }

#define ROUNDED(ROWS)                                                                                                  \
    case ROWS:                                                                                                         \
        rounded_tile(ROWS, layer, first, bytes + row * quads * QUAD, each + row, y + row * layer->out), row += ROWS;    \
        break;

/* Every thread rounds the inputs for itself, of so many rows at a time as have room on its stack. */
static void share_rounded(const struct target *targets, int64_t joined, const REAL *x, int64_t stride, int64_t rows)
{
    const int64_t in = targets->layer->in, quads = (in + QUAD - 1) / QUAD, panels = panels_of(targets, joined);
    for (int64_t done = 0, count; done < rows; done += count, x += count * stride) {
        count = rows - done < TILES * TILE ? rows - done : TILES * TILE;
        uint8_t bytes[count * quads * QUAD];
        REAL each[count];
        for (int64_t r = 0; r < count; r++) each[r] = round_row(x + r * stride, in, bytes + r * quads * QUAD);
        SHARE_PANELS(ROUNDED)
    }
}
#endif

/* y, normalised, or x itself where there is nothing to do. */
static const REAL *normalised(const struct norm *norm, const REAL *x, int64_t width, REAL *y)
{
    REAL mean = 0, variance = 0;
    if (!norm) return x;
    for (int64_t i = 0; i < width; i++) mean += x[i];
    mean /= width;
    for (int64_t i = 0; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    REAL scale = 1 / SQRT(variance / width + (REAL)norm->epsilon);
    for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * scale * norm->gain[i] + norm->offset[i];
    return y;
}

#include "fours.c"
#include "tiles.c"

/* Formats and row counts that the compiler knows keep their sums in registers. */
#define OF_ROWS(FORMAT, ROWS)                                                                                          \
    case 8 * FORMAT + ROWS: product_tile(FORMAT, ROWS, layer, first, x + row * stride, stride, y + row * out); break;
#define OF_FORMAT(FORMAT)                                                                                              \
    OF_ROWS(FORMAT, 1) OF_ROWS(FORMAT, 2) OF_ROWS(FORMAT, 3) OF_ROWS(FORMAT, 4) OF_ROWS(FORMAT, 5) OF_ROWS(FORMAT, 6)

static void share_exact(const struct target *targets, int64_t joined, const REAL *x, int64_t stride, int64_t rows)
{
    int64_t panels = panels_of(targets, joined), tiles = (rows + TILE - 1) / TILE;
    int64_t shares = (tiles + TILES - 1) / TILES, size = tiles ? rows / tiles : 0, larger = rows - size * tiles;
    deal(targets, panels);
    #pragma omp for schedule(runtime) nowait
    for (int64_t task = 0; task < panels * shares; task++) {
        int64_t own = task / shares, tile = task % shares * TILES;
        const struct target *target = target_of(targets, &own);
        const struct layer *layer = target->layer;
        const int64_t first = own * PANEL, out = layer->out;
        REAL *y = target->y;
        for (int64_t last = tile + TILES < tiles ? tile + TILES : tiles; tile < last; tile++) {
            int64_t row = tile * size + (tile < larger ? tile : larger), count = size + (tile < larger);
            switch (8 * layer->format + count) {
                OF_FORMAT(FULL)
#ifdef NARROW
                OF_FORMAT(FLOAT16) OF_FORMAT(BFLOAT16) OF_FORMAT(INT8)
#ifndef QUAD
                OF_FOURS(1) OF_FOURS(2) OF_FOURS(3) OF_FOURS(4) OF_FOURS(5) OF_FOURS(6)
#endif
#endif
            }
        }
    }
}

/* All of them in 8 bits, all in 4, or none. Nobody waits for the others. */
static void share_joined(const struct target *targets, int64_t joined, const REAL *x, int64_t stride, int64_t rows)
{
#ifdef TILED
    int64_t alike = 1;
    while (alike < joined && (targets[alike].layer->format == PAIRED) == (targets->layer->format == PAIRED)) alike++;
    if (alike < joined) share_joined(targets + alike, joined - alike, x, stride, rows);
    joined = alike;
    if (targets->layer->format == PAIRED) {
        share_tiles(PAIRED, targets, joined, x, stride, rows);
        return;
    }
    if (targets->layer->format == INT8 && may_tile && rows >= FEWEST && targets->layer->in % ROW == 0) {
        share_tiles(INT8, targets, joined, x, stride, rows);
        return;
    }
#endif
#ifdef QUAD
    if (targets->layer->format == INT8) {
        share_rounded(targets, joined, x, stride, rows);
        return;
    }
    if (targets->layer->format == INT4) {
        share_fours(targets, joined, x, stride, rows);
        return;
    }
#endif
    share_exact(targets, joined, x, stride, rows);
}

static void share_product(
    const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, const REAL *residual, REAL *y)
{
    const int64_t out = layer->out;
    share_joined(&(struct target){layer, y}, 1, x, stride, rows);
    meet();
    if (!residual) return;
    #pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; row++) {
        REAL *sum = y + row * out;
        for (int64_t i = 0; i < out; i++) sum[i] += residual[row * out + i];
        normalised(layer->norm, sum, out, sum);
    }
    meet();
}

void product(const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, const REAL *residual, REAL *y)
{
    struct meeting meeting = {0};
    #pragma omp parallel
    {
        team = &meeting;
        share_product(layer, x, stride, rows, residual, y);
    }
}

