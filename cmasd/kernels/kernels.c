/* What torch has no kernel for on a CPU; built by build.py, called by calls.py. REAL is float or double. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LEAST -1e30 /* below any score; an infinity has no place in code that is compiled to be fast */
#define NOTHING -80 /* exp of it counts as nothing beside 1 */

/* ------------------------------------------------------------------ attention

   Short windows over slots of different lengths.

   lines[slot][head][position] = key, value      of one layer, `width` numbers each
   counts[row]                                   positions that count so far

   With `fresh`, every token of the window first leaves its key and value behind, at counts[row] + t, and sees what was
   there before and its window up to itself; without, it sees exactly counts[row] positions. A row reads no further
   than it is long, and its sums do not depend on the rows or on the tokens beside it. */

static inline __attribute__((always_inline)) void attend_one(
    const REAL *query, const REAL *lines, int64_t count, int64_t width, REAL scale, REAL *scores, REAL *out)
{
    REAL top = LEAST, mass = 0, sums[width];
    for (int64_t j = 0; j < count; j++) {
        REAL product = 0;
        for (int64_t i = 0; i < width; i++) product += query[i] * lines[2 * j * width + i];
        scores[j] = product * scale;
        top = scores[j] > top ? scores[j] : top;
    }
    for (int64_t j = 0; j < count; j++) mass += scores[j] = EXP(scores[j] - top);
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < width; i++) sums[i] += scores[j] * lines[(2 * j + 1) * width + i];
    for (int64_t i = 0; i < width; i++) out[i] = sums[i] / mass;
}

/* Loops of a width that the compiler knows are unrolled: several times faster. */
#define KNOWN(WIDTH) case WIDTH: attend_one(query, slot, count, WIDTH, scale, scores, sum); break;

/* Shared out among the threads that call it, like all functions whose name begins with `share`. */
static void share_attention(const REAL *queries, int64_t stride, const REAL *fresh, REAL *lines, int64_t slot_stride,
                            int64_t head_stride, const int64_t *counts, int64_t rows, int64_t window, int64_t heads,
                            int64_t width, REAL *out)
{
    const REAL scale = 1 / sqrt((double)width);
    #pragma omp for schedule(dynamic, 4)
    for (int64_t group = 0; group < rows * heads; group++) {
        int64_t row = group / heads, head = group % heads, known = counts[row];
        REAL *slot = lines + row * slot_stride + head * head_stride, scores[known + window];
        for (int64_t t = 0; t < window; t++) {
            int64_t place = row * window + t, count = fresh ? known + t + 1 : known;
            const REAL *query = queries + place * stride + head * width;
            REAL *sum = out + (place * heads + head) * width;
            if (fresh)
                memcpy(slot + 2 * (count - 1) * width, fresh + place * stride + 2 * head * width,
                       2 * width * sizeof(REAL));
            switch (width) {
                KNOWN(32) KNOWN(64) KNOWN(128)
                default: attend_one(query, slot, count, width, scale, scores, sum);
            }
        }
    }
}

void attend(const REAL *queries, int64_t window, REAL *lines, int64_t slot_stride, int64_t head_stride,
            const int64_t *counts, int64_t rows, int64_t heads, int64_t width, REAL *out)
{
    #pragma omp parallel if (rows * heads > 4)
    share_attention(queries, heads * width, 0, lines, slot_stride, head_stride, counts, rows, window, heads, width, out);
}

/* ------------------------------------------------------------------ logits

   Of each row z: where the largest is (the first of equals), and, unless `numbers` is null, what NUMBERS are called in
   cmasd/confidence/largest.py, with z1 and z2 the two largest and p = softmax(z). */

#define NUMBERS 6

#define ABREAST 64 /* so that no comparison waits for the one before */

static REAL most(const REAL *z, int64_t count, REAL least)
{
    REAL each[ABREAST];
    int64_t i = 0;
    for (int64_t j = 0; j < ABREAST; j++) each[j] = least;
    for (; i + ABREAST <= count; i += ABREAST)
        for (int64_t j = 0; j < ABREAST; j++) each[j] = z[i + j] > each[j] ? z[i + j] : each[j];
    for (; i < count; i++) least = z[i] > least ? z[i] : least;
    for (int64_t j = 0; j < ABREAST; j++) least = each[j] > least ? each[j] : least;
    return least;
}

static int64_t largest(const REAL *z, int64_t count)
{
    const REAL top = most(z, count, z[0]);
    int64_t at = 0, found = 0;
    for (; at + ABREAST <= count; at += ABREAST) {
        for (int64_t j = 0; j < ABREAST; j++) found |= z[at + j] >= top;
        if (found) break;
    }
    while (at < count && z[at] < top) at++;
    return at < count ? at : 0;
}

void statistics(const REAL *logits, int64_t rows, int64_t columns, int64_t *tokens, REAL *numbers)
{
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const REAL *z = logits + row * columns;
        int64_t at = tokens[row] = largest(z, columns);
        REAL top = z[at], mass = 0, mean = 0;
        if (!numbers) continue;
        REAL before = most(z, at, at ? z[0] : z[columns - 1]), second = most(z + at + 1, columns - at - 1, before);
        for (int64_t i = 0; i < columns; i++) {
            REAL below = z[i] - top, share = 0;
            below = below < NOTHING ? NOTHING : below;
            share = EXP(below);
            mass += share;
            mean += share * below;
        }
        REAL gap = second - top, entropy = 1 - (LOG(mass) - mean / mass) / LOG((REAL)columns);
        REAL ratio = EXP(gap < NOTHING ? NOTHING : gap), *out = numbers + NUMBERS * row;
        out[0] = top;
        out[1] = LOG(mass);
        out[2] = entropy < 0 ? 0 : entropy > 1 ? 1 : entropy;
        out[3] = (1 - ratio) / (1 + ratio);
        out[4] = (1 - ratio) / mass;
        out[5] = 1 / mass;
    }
}

/* Of each row, how many leading tokens of its draft have the largest logit, and the token that has it behind those. */
void accept(const REAL *logits, const int64_t *draft, const int64_t *lengths, int64_t rows, int64_t window,
            int64_t columns, int64_t *accepted, int64_t *next)
{
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        int64_t count = 0, best;
        while (best = largest(logits + (row * window + count) * columns, columns),
               count < lengths[row] && draft[row * (window - 1) + count] == best)
            count++;
        accepted[row] = count, next[row] = best;
    }
}

/* ------------------------------------------------------------------ rows

   Small work on whole numbers, one call each: in tensor operations it took longer than the model's forward. `numbers`
   has a row for each slot, see below; the rows are those of the first slots. */

enum { LENGTH, LIMIT, PROMPT, ITERATIONS = 4, DRAFTED, ACCEPTED, DRAFTING, ROLLBACKS };

/* How many tokens each row may draft, of at most `most`. */
void room(const int64_t *numbers, int64_t number_stride, int64_t rows, int64_t most, int64_t *rooms)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t left = numbers[row * number_stride + LIMIT] - numbers[row * number_stride + LENGTH] - 1;
        rooms[row] = left < 0 ? 0 : left < most ? left : most;
    }
}

/* What the verifier is shown, and where that begins: each row's last token, then its draft. */
void show(const int64_t *numbers, int64_t number_stride, const int64_t *tokens, int64_t token_stride,
          const int64_t *draft, int64_t rows, int64_t drafted, int64_t *windows, int64_t *starts)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t *out = windows + row * (drafted + 1);
        starts[row] = numbers[row * number_stride + LENGTH] - 1;
        out[0] = tokens[row * token_stride + starts[row]];
        memcpy(out + 1, draft + row * drafted, drafted * sizeof(int64_t));
    }
}

/* How much of each draft counts: what lies behind an end of sequence does not. */
void until_end(const int64_t *draft, int64_t rows, int64_t drafted, const int64_t *eos, int64_t eos_count,
               const int64_t *room, int64_t *lengths)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = 0, is_end = 0, most = room[row] < drafted ? room[row] : drafted;
        for (; length < most && !is_end; length++)
            for (int64_t i = 0; i < eos_count; i++) is_end |= draft[row * drafted + length] == eos[i];
        lengths[row] = length;
    }
}

/* As `_drafted` and `_tally` of cmasd/engine/commit.py. */

void commit(const int64_t *draft, const int64_t *lengths, const float *confidence, int64_t rows, int64_t drafted,
            const int64_t *accepted, const int64_t *next, const int64_t *eos, int64_t eos_count, int64_t *numbers,
            int64_t number_stride, int64_t *tokens, int64_t token_stride, int64_t *by_length, int64_t length_stride,
            float *confidence_sum, int64_t sum_stride, int64_t *emitted, int64_t *counts, uint8_t *ended)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t *number = numbers + row * number_stride, *to = tokens + row * token_stride + number[LENGTH];
        int64_t *out = emitted + row * (drafted + 1), length = lengths[row], count = 0, is_end = 0;
        for (int64_t i = 0; i < drafted; i++) to[i] = out[i] = draft[row * drafted + i];
        to[drafted] = out[drafted] = next[row];
        to[accepted[row]] = out[accepted[row]] = next[row];
        while (count <= accepted[row] && !is_end) {
            for (int64_t i = 0; i < eos_count; i++) is_end |= out[count] == eos[i];
            count++;
        }
        counts[row] = count, ended[row] = is_end;
        int64_t kept = accepted[row] < count ? accepted[row] : count;
        number[ITERATIONS]++;
        if (!drafted) continue;
        number[DRAFTED] += length;
        number[ACCEPTED] += kept;
        number[DRAFTING] += length > 0;
        number[ROLLBACKS] += accepted[row] < length && accepted[row] < count;
        by_length[length]++, by_length[length_stride + kept]++;
        for (int64_t i = 0; i < length; i++) confidence_sum[row * sum_stride] += confidence[row * drafted + i];
    }
}

/* The end of an iteration: rows advance, and those that ended are closed. Returns how many are done, and which. */
int64_t advance(int64_t *numbers, int64_t number_stride, int64_t rows, const int64_t *counts, const uint8_t *ended,
                int64_t *done)
{
    int64_t count = 0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t *number = numbers + row * number_stride;
        number[LENGTH] += counts[row];
        if (ended[row]) number[LIMIT] = 0;
        if (number[LENGTH] >= number[LIMIT]) done[count++] = row;
    }
    return count;
}

/* Of the `fed` draft tokens that a drafter's cache holds, those that were accepted stay. */
void keep(int64_t *cached, int64_t rows, const int64_t *accepted, int64_t fed)
{
    for (int64_t row = 0; row < rows; row++) cached[row] += accepted[row] < fed ? accepted[row] : fed;
}

/* As `trace` of cmasd/engine/trace.py, after `commit`, for what is kept: what is not is null. The first row of each trace
   is given, with what an iteration or a token holds that nobody drafted. */

#define TOKEN 8
#define ITERATION 6
#define SCORES 4

static void put_scores(const float *confidence, const float *components, float *out)
{
    out[0] = *confidence;
    memcpy(out + 1, components, (SCORES - 1) * sizeof(float));
}

void trace(const REAL *logits, int64_t rows, int64_t window, int64_t columns, const int64_t *emitted,
           const int64_t *counts, const int64_t *accepted, const int64_t *lengths, const float *confidence,
           const float *components, const float *tau, const int64_t *numbers, int64_t number_stride,
           const float *plain_token, float *tokens, int64_t token_stride, float *iterations, int64_t iteration_stride,
           float *gap_sum, int64_t sum_stride)
{
    const int64_t drafted = window - 1;
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *number = numbers + row * number_stride, count = counts[row], length = lengths[row];
        const float *mine = confidence + row * drafted, *why = components + row * drafted * (SCORES - 1);
        int64_t kept = accepted[row] < count ? accepted[row] : count;
        if (iterations && drafted && count) {
            float *out = iterations + row * iteration_stride + ITERATION * (number[ITERATIONS] - 1);
            out[0] = length, out[1] = kept; /* the others hold what they do without a rejection */
            if (kept < length && kept < count) put_scores(mine + kept, why + kept * (SCORES - 1), out + 2);
        }
        for (int64_t t = 0; t < count && (tokens || gap_sum); t++) {
            const REAL *z = logits + (row * window + t) * columns;
            REAL top = most(z, columns, z[0]), gap = top - z[emitted[row * window + t]], mass = 0;
            if (gap_sum) gap_sum[row * sum_stride] += gap;
            if (!tokens) continue;
            float *out = tokens + row * token_stride + TOKEN * (number[LENGTH] - number[PROMPT] + t);
            for (int64_t i = 0; i < columns; i++) mass += EXP(z[i] - top < NOTHING ? NOTHING : z[i] - top);
            memcpy(out, plain_token, TOKEN * sizeof(float));
            if (t < accepted[row]) out[0] = 1, put_scores(mine + t, why + t * (SCORES - 1), out + 1);
            if (t < length) out[5] = tau[row * drafted + t];
            out[6] = gap, out[7] = -gap - LOG(mass);
        }
    }
}

/* ------------------------------------------------------------------ products

   y = x w + bias for weights that serve again and again. They are packed in strips of LANES outputs, [input][output],
   and COLUMNS strips are read at once, each from front to back (the processor fetches ahead in each of them): with few
   rows that reading is all that a product costs. So weights that are numbers of 16 bits by nature are kept as such and
   widened on the way: half the bytes, the same product. In 8 bits, with a scale per output, it is another product: where
   the processor multiplies bytes, of inputs that are rounded too, with a scale per row; else of the inputs as they are.
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

enum { FULL, FLOAT16, BFLOAT16, INT8 }; /* how weights are stored */
enum { NONE, RELU, GELU, SILU };

struct norm {
    const REAL *gain, *offset;
    double epsilon;
};

struct layer {
    const char *weights;
    const REAL *bias, *scales; /* scales of INT8 alone, */
    const int32_t *offsets;    /* and these: minus ZERO times the sum of an output's weights, where inputs are rounded */
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

#define ROUNDED(ROWS)                                                                                                  \
    case ROWS:                                                                                                         \
        rounded_tile(ROWS, layer, first, bytes + row * quads * QUAD, each + row, y + row * layer->out), row += ROWS;    \
        break;

/* Every thread rounds the inputs for itself, of so many rows at a time as have room on its stack. */
static void share_rounded(const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, REAL *y)
{
    const int64_t quads = (layer->in + QUAD - 1) / QUAD, panels = (layer->out + PANEL - 1) / PANEL;
    for (int64_t left = rows, count; left > 0; left -= count, x += count * stride, y += count * layer->out) {
        count = left < TILES * TILE ? left : TILES * TILE;
        uint8_t bytes[count * quads * QUAD];
        REAL each[count];
        for (int64_t r = 0; r < count; r++) each[r] = round_row(x + r * stride, layer->in, bytes + r * quads * QUAD);
        #pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; panel++) {
            const int64_t first = panel * PANEL, tiles = (count + TILE - 1) / TILE;
            for (int64_t tile = 0, row = 0; tile < tiles; tile++)
                switch ((count - row) / (tiles - tile)) {
                    ROUNDED(1) ROUNDED(2) ROUNDED(3) ROUNDED(4) ROUNDED(5) ROUNDED(6)
                }
        }
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

/* Formats and row counts that the compiler knows keep their sums in registers. */
#define OF_ROWS(FORMAT, ROWS)                                                                                          \
    case 8 * FORMAT + ROWS: product_tile(FORMAT, ROWS, layer, first, x + row * stride, stride, y + row * out); break;
#define OF_FORMAT(FORMAT)                                                                                              \
    OF_ROWS(FORMAT, 1) OF_ROWS(FORMAT, 2) OF_ROWS(FORMAT, 3) OF_ROWS(FORMAT, 4) OF_ROWS(FORMAT, 5) OF_ROWS(FORMAT, 6)

static void share_exact(const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, REAL *y)
{
    int64_t out = layer->out, panels = (out + PANEL - 1) / PANEL, tiles = (rows + TILE - 1) / TILE;
    int64_t shares = (tiles + TILES - 1) / TILES, size = tiles ? rows / tiles : 0, larger = rows - size * tiles;
    #pragma omp for schedule(static)
    for (int64_t task = 0; task < panels * shares; task++) {
        int64_t first = task / shares * PANEL, tile = task % shares * TILES;
        for (int64_t last = tile + TILES < tiles ? tile + TILES : tiles; tile < last; tile++) {
            int64_t row = tile * size + (tile < larger ? tile : larger), count = size + (tile < larger);
            switch (8 * layer->format + count) {
                OF_FORMAT(FULL)
#ifdef NARROW
                OF_FORMAT(FLOAT16) OF_FORMAT(BFLOAT16) OF_FORMAT(INT8)
#endif
            }
        }
    }
}

static void share_product(
    const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, const REAL *residual, REAL *y)
{
    const int64_t out = layer->out;
#ifdef QUAD
    if (layer->format == INT8) share_rounded(layer, x, stride, rows, y);
    else
#endif
    share_exact(layer, x, stride, rows, y);
    if (!residual) return;
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        REAL *sum = y + row * out;
        for (int64_t i = 0; i < out; i++) sum[i] += residual[row * out + i];
        normalised(layer->norm, sum, out, sum);
    }
}

void product(const struct layer *layer, const REAL *x, int64_t stride, int64_t rows, const REAL *residual, REAL *y)
{
    #pragma omp parallel
    share_product(layer, x, stride, rows, residual, y);
}

/* ------------------------------------------------------------------ decoder

   Windows of tokens to hidden states, layer by layer, over stored keys and values of the output so far and of the
   source, or over each other; threads are called together once for all of it. Norms lie before each part of a layer, or
   in its last product. */

struct block {
    const struct norm *first[3]; /* before each part, or null */
    const struct layer *project, *keep; /* attention to the output so far */
    const struct layer *query, *add;    /* to the source; null in an encoder, */
    const struct layer *store;          /* and what makes its keys and values */
    const struct layer *inner, *end;    /* feed-forward */
    const struct layer *recall;         /* what makes keys and values of places, where `project` makes queries alone */
};

struct decoder {
    const REAL *tokens, *positions; /* tables */
    const struct norm *embedded, *last;
    const struct block *blocks;
    int64_t vocabulary, places; /* rows of these; what lies behind them is read as their last */
    int64_t padding;            /* the id that has place 0 and moves the others up, or -1 */
    int64_t width, heads, count;
    int64_t room; /* numbers of scratch for each token */
};

struct lines { /* of a cache: [block][slot][head][position] */
    REAL *first;
    const int64_t *counts;     /* by row: positions before the window, or in all */
    int64_t block, slot, head; /* strides */
};

static void share_attending(const struct decoder *decoder, const struct lines *lines, int64_t block,
                            const REAL *queries, int64_t stride, int is_fresh, int64_t rows, int64_t window, REAL *out)
{
    share_attention(queries, stride, is_fresh ? queries + decoder->width : 0, lines->first + block * lines->block,
                    lines->slot, lines->head, lines->counts, rows, window, decoder->heads,
                    decoder->width / decoder->heads, out);
}

/* Where there is a norm, all rows of x normalised, in `room`. */
static const REAL *share_norm(const struct norm *norm, const REAL *x, int64_t count, int64_t width, REAL *room)
{
    if (!norm) return x;
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < count; n++) normalised(norm, x + n * width, width, room + n * width);
    return room;
}

/* Without `starts` each window is a whole source, whose places are counted without the padding id. */
static void share_embedding(const struct decoder *decoder, const int64_t *tokens, const int64_t *starts, int64_t count,
                            int64_t window, REAL *x)
{
    const int64_t width = decoder->width;
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < count; n++) {
        int64_t place = (starts ? starts[n / window] : 0) + n % window, id = tokens[n];
        if (decoder->padding >= 0 && !starts)
            for (int64_t m = n - n % window; m < n; m++) place -= tokens[m] == decoder->padding;
        if (decoder->padding >= 0) place = id == decoder->padding ? 0 : place + 1;
        place = place < decoder->places ? place : decoder->places - 1;
        id = id < decoder->vocabulary ? id : decoder->vocabulary - 1;
        const REAL *token = decoder->tokens + id * width, *position = decoder->positions + place * width;
        for (int64_t i = 0; i < width; i++) x[n * width + i] = token[i] + position[i];
        normalised(decoder->embedded, x + n * width, width, x + n * width);
    }
}

static void share_last_norm(const struct norm *norm, const REAL *x, int64_t count, int64_t width, REAL *out)
{
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < count; n++)
        if (normalised(norm, x + n * width, width, out + n * width) != out + n * width)
            memcpy(out + n * width, x + n * width, width * sizeof(REAL));
}

static void decode_together(const struct decoder *decoder, const int64_t *tokens, int64_t rows, int64_t window,
                            const struct lines *past, const struct lines *source, REAL *room, REAL *out)
{
    const int64_t width = decoder->width, count = rows * window, size = count * width;
    #pragma omp parallel
    {
        REAL *x = room, *other = x + size, *normed = other + size, *sums = normed + size, *wide = sums + size;
        share_embedding(decoder, tokens, past->counts, count, window, x);
        for (int64_t b = 0; b < decoder->count; b++) {
            const struct block *block = decoder->blocks + b;
            share_product(block->project, share_norm(block->first[0], x, count, width, normed), width, count, 0, wide);
            share_attending(decoder, past, b, wide, 3 * width, 1, rows, window, sums);
            share_product(block->keep, sums, width, count, x, other);
            share_product(block->query, share_norm(block->first[1], other, count, width, normed), width, count, 0, wide);
            share_attending(decoder, source, b, wide, width, 0, rows, window, sums);
            share_product(block->add, sums, width, count, other, x);
            share_product(block->inner, share_norm(block->first[2], x, count, width, normed), width, count, 0, wide);
            share_product(block->end, wide, block->inner->out, count, x, other);
            REAL *swapped = x;
            x = other, other = swapped;
        }
        share_last_norm(decoder->last, x, count, width, out);
    }
}

/* Threads share the outputs of each product, which each of them has to wait for and to fetch from the others' caches; or,
   where there are tokens enough that reading all weights does not count, the rows, each in a part of its own. */
#define PART_TOKENS 4

static int64_t parts_of(int64_t rows, int64_t window)
{
    int64_t threads = omp_get_max_threads();
    return rows < threads || rows * window < PART_TOKENS * threads ? 1 : threads;
}

/* Does what is given for each part of `rows`: `count` of them from `row` on, whose first token is the `token`th. A single
   part is no loop of its own: threads inside a team of one would be started anew each time. */
#define SHARE_ROWS(...)                                                                                                \
    do {                                                                                                               \
        const int64_t parts = parts_of(rows, window);                                                                  \
        if (parts == 1) {                                                                                              \
            const int64_t row = 0, count = rows, token = 0;                                                            \
            __VA_ARGS__;                                                                                               \
            break;                                                                                                     \
        }                                                                                                              \
        _Pragma("omp parallel for schedule(static)")                                                                   \
        for (int64_t part = 0; part < parts; part++) {                                                                 \
            const int64_t row = rows * part / parts, count = rows * (part + 1) / parts - row, token = row * window;    \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

static struct lines behind(const struct lines *lines, int64_t row)
{
    struct lines here = *lines;
    here.first += row * lines->slot, here.counts += row;
    return here;
}

/* `room` holds `decoder->room` numbers for each token: 4 * width, and 3 * width or the widest inner product's outputs. */
void decode(const struct decoder *decoder, const int64_t *tokens, int64_t rows, int64_t window,
            const struct lines *past, const struct lines *source, REAL *room, REAL *out)
{
    SHARE_ROWS(struct lines my_past = behind(past, row), my_source = behind(source, row);
               decode_together(decoder, tokens + token, count, window, &my_past, &my_source,
                               room + token * decoder->room, out + token * decoder->width));
}

/* Every token's (key, value) head by head, at `fresh`, to its row's slot; rows without `slots` have those of their own. */
static void share_storing(const REAL *fresh, int64_t stride, int64_t count, int64_t window, int64_t heads, int64_t pair,
                          const int64_t *slots, REAL *lines, int64_t slot_stride, int64_t head_stride)
{
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < count; n++) {
        int64_t row = n / window;
        REAL *slot = lines + (slots ? slots[row] : row) * slot_stride + n % window * pair;
        for (int64_t head = 0; head < heads; head++)
            memcpy(slot + head * head_stride, fresh + n * stride + head * pair, pair * sizeof(REAL));
    }
}

static void fill_together(const struct decoder *decoder, const REAL *encoded, int64_t rows, int64_t window,
                          const int64_t *slots, const struct lines *source, REAL *room)
{
    const int64_t width = decoder->width, count = rows * window, heads = decoder->heads, pair = 2 * width / heads;
    #pragma omp parallel
    for (int64_t b = 0; b < decoder->count; b++) {
        share_product(decoder->blocks[b].store, encoded, width, count, 0, room);
        share_storing(room, 2 * width, count, window, heads, pair, slots, source->first + b * source->block,
                      source->slot, source->head);
    }
}

/* The source's keys and values, in every block; rows go to their slots. `room` holds two widths for each token. */
void fill(const struct decoder *decoder, const REAL *encoded, int64_t rows, int64_t window, const int64_t *slots,
          const struct lines *source, REAL *room)
{
    const int64_t width = decoder->width;
    SHARE_ROWS(fill_together(decoder, encoded + token * width, count, window, slots + row, source,
                             room + token * 2 * width));
}

static void encode_together(const struct decoder *encoder, const int64_t *tokens, const int64_t *lengths, int64_t rows,
                            int64_t window, REAL *room, REAL *out)
{
    const int64_t width = encoder->width, count = rows * window, size = count * width;
    const int64_t heads = encoder->heads, pair = 2 * width / heads;
    #pragma omp parallel
    {
        REAL *x = room, *other = x + size, *normed = other + size, *sums = normed + size, *pairs = sums + size;
        REAL *wide = pairs + 2 * size;
        share_embedding(encoder, tokens, 0, count, window, x);
        for (int64_t b = 0; b < encoder->count; b++) {
            const struct block *block = encoder->blocks + b;
            share_product(block->project, share_norm(block->first[0], x, count, width, normed), width, count, 0, wide);
            share_storing(wide + width, 3 * width, count, window, heads, pair, 0, pairs, 2 * window * width, window * pair);
            share_attention(wide, 3 * width, 0, pairs, 2 * window * width, window * pair, lengths, rows, window, heads,
                            width / heads, sums);
            share_product(block->keep, sums, width, count, x, other);
            share_product(block->inner, share_norm(block->first[2], other, count, width, normed), width, count, 0, wide);
            share_product(block->end, wide, block->inner->out, count, other, x);
        }
        share_last_norm(encoder->last, x, count, width, out);
    }
}

/* An encoder is a decoder without a source, whose tokens see all of their row's first `lengths` ones. `room` holds two
   widths more for each token, for their keys and values, [row][head][place]. */
void encode(const struct decoder *encoder, const int64_t *tokens, const int64_t *lengths, int64_t rows, int64_t window,
            REAL *room, REAL *out)
{
    const int64_t width = encoder->width;
    SHARE_ROWS(encode_together(encoder, tokens + token, lengths + row, count, window,
                               room + token * (encoder->room + 2 * width), out + token * width));
}

/* Greedy decoding: `count` tokens for each row behind its window of tokens, [row][token], and their NUMBERS. `only` says
   which of a row's window is its last token; without it that is the window's. With `ids` the head has only these columns.
   Returns 0 where there is no memory. */
static int64_t continue_windows(const struct decoder *decoder, const struct layer *head, const int64_t *ids,
                                const int64_t *tokens, const int64_t *starts, int64_t rows, int64_t window,
                                const int64_t *only, int64_t count, const struct lines *past,
                                const struct lines *source, int64_t *found, REAL *numbers)
{
    const int64_t width = decoder->width;
    int64_t *places = malloc(2 * rows * sizeof(int64_t)), *best = places + rows;
    int64_t needed = rows * (window * (width + decoder->room) + head->out + NUMBERS) * sizeof(REAL);
    REAL *hidden = aligned_alloc(VECTOR, (needed + VECTOR - 1) / VECTOR * VECTOR);
    if (places && hidden) {
        REAL *logits = hidden + rows * window * width, *judged = logits + rows * head->out, *rest = judged + rows * NUMBERS;
        struct lines here = *past;
        here.counts = memcpy(places, starts, rows * sizeof(int64_t));
        for (int64_t j = 0; j < count; j++, tokens = best, window = 1, only = 0) {
            decode(decoder, tokens, rows, window, &here, source, rest, hidden);
            for (int64_t row = 0; row < rows; row++) {
                int64_t last = only ? only[row] : window - 1;
                memmove(hidden + row * width, hidden + (row * window + last) * width, width * sizeof(REAL));
                places[row] += last + 1;
            }
            product(head, hidden, width, rows, 0, logits);
            statistics(logits, rows, head->out, best, judged);
            for (int64_t row = 0; row < rows; row++) {
                if (ids) best[row] = ids[best[row]];
                found[row * count + j] = best[row];
                memcpy(numbers + (row * count + j) * NUMBERS, judged + row * NUMBERS, NUMBERS * sizeof(REAL));
            }
        }
    }
    int64_t is_done = places && hidden;
    free(places), free(hidden);
    return is_done;
}

/* For rows that end with one token each that the cache lacks, at `starts`. */
int64_t guess(const struct decoder *decoder, const struct layer *head, const int64_t *ids, const int64_t *tokens,
              const int64_t *starts, int64_t rows, int64_t count, const struct lines *past, const struct lines *source,
              int64_t *found, REAL *numbers)
{
    return continue_windows(decoder, head, ids, tokens, starts, rows, 1, 0, count, past, source, found, numbers);
}

/* For rows of which the cache lacks all tokens from `cached` on: it holds them afterwards. Returns how many at most. */
int64_t catch_up(const struct decoder *decoder, const struct layer *head, const int64_t *ids, const int64_t *row_tokens,
                 int64_t token_stride, const int64_t *row_numbers, int64_t number_stride, int64_t *cached, int64_t rows,
                 int64_t count, const struct lines *past, const struct lines *source, int64_t *found, REAL *numbers)
{
    int64_t window = 1;
    for (int64_t row = 0; row < rows; row++) {
        int64_t missing = row_numbers[row * number_stride + LENGTH] - cached[row];
        window = missing > window ? missing : window;
    }
    int64_t *tokens = malloc(rows * (window + 2) * sizeof(int64_t)), *last = tokens + rows * window, *starts = last + rows;
    if (!tokens) return 0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = row_numbers[row * number_stride + LENGTH], start = starts[row] = cached[row];
        last[row] = length - 1 - start;
        for (int64_t t = 0; t < window; t++)
            tokens[row * window + t] = row_tokens[row * token_stride + (start + t < length ? start + t : length - 1)];
        cached[row] = length;
    }
    int64_t is_done = continue_windows(decoder, head, ids, tokens, starts, rows, window, last, count, past, source,
                                       found, numbers);
    free(tokens);
    return is_done ? window : 0;
}

/* ------------------------------------------------------------------ drafts of one pass

   As cmasd/runner/parallel.py: queries over keys and values of places, each made of the hidden state that said its token
   and of the token, and over the source. What one token of a draft means for the next is the Markov head's part. */

struct drafter {
    const struct decoder *decoder; /* without an embedding of its own, or a last norm */
    const struct layer *fuse, *head, *context, *out; /* the last two null without a Markov head */
    const REAL *queries, *previous, *judge; /* [query][width], [token][rank], weights and offset or null */
    const int64_t *ids;                     /* of the head's columns, or null where these are all */
    int64_t rank;
};

struct seen { /* [slot][place]: the hidden states that said the tokens, `width` numbers each */
    REAL *first;
    int64_t slot;
};

static void plain_norm(const REAL *x, int64_t width, REAL *y)
{
    REAL mean = 0, variance = 0;
    for (int64_t i = 0; i < width; i++) mean += x[i];
    mean /= width;
    for (int64_t i = 0; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    REAL scale = 1 / SQRT(variance / width + (REAL)1e-5);
    for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * scale;
}

/* Keys and values of `count` places, which are `places[n]` of `owners[n]`, and their features. */
static void share_recalling(const struct drafter *drafter, const int64_t *tokens, const int64_t *places,
                            const int64_t *owners, int64_t count, const struct seen *seen, const struct lines *past,
                            REAL *joined, REAL *pairs, REAL *features)
{
    const struct decoder *decoder = drafter->decoder;
    const int64_t width = decoder->width, pair = 2 * width / decoder->heads;
    share_embedding(decoder, tokens, places, count, 1, pairs);
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < count; n++) {
        plain_norm(seen->first + owners[n] * seen->slot + places[n] * width, width, joined + 2 * n * width);
        memcpy(joined + (2 * n + 1) * width, pairs + n * width, width * sizeof(REAL));
    }
    share_product(drafter->fuse, joined, 2 * width, count, 0, features);
    for (int64_t b = 0; b < decoder->count; b++) {
        share_product(decoder->blocks[b].recall, features, width, count, 0, pairs);
        #pragma omp for schedule(static)
        for (int64_t n = 0; n < count; n++)
            for (int64_t head = 0; head < decoder->heads; head++)
                memcpy(past->first + b * past->block + owners[n] * past->slot + head * past->head + places[n] * pair,
                       pairs + 2 * n * width + head * pair, pair * sizeof(REAL));
    }
}

/* States of the queries, [row][query], from x; they come out in `room`, whose part that is, is returned. */
static REAL *share_querying(const struct decoder *decoder, int64_t rows, int64_t count, const struct lines *past,
                            const struct lines *source, REAL *room)
{
    const int64_t width = decoder->width, all = rows * count, size = all * width;
    REAL *x = room, *other = x + size, *normed = other + size, *sums = normed + size, *wide = sums + size;
    for (int64_t b = 0; b < decoder->count; b++) {
        const struct block *block = decoder->blocks + b;
        REAL *swapped = x;
        share_product(block->project, share_norm(block->first[0], x, all, width, normed), width, all, 0, wide);
        share_attending(decoder, past, b, wide, width, 0, rows, count, sums);
        share_product(block->keep, sums, width, all, x, other);
        x = other, other = swapped;
        if (block->query) {
            share_product(block->query, share_norm(block->first[1], x, all, width, normed), width, all, 0, wide);
            share_attending(decoder, source, b, wide, width, 0, rows, count, sums);
            share_product(block->add, sums, width, all, x, other);
            swapped = x, x = other, other = swapped;
        }
        share_product(block->inner, share_norm(block->first[2], x, all, width, normed), width, all, 0, wide);
        share_product(block->end, wide, block->inner->out, all, x, other);
        swapped = x, x = other, other = swapped;
    }
    return x;
}

/* One token more for each row, behind `latest`, which becomes it. */
static void say(const struct drafter *drafter, int64_t rows, int64_t j, int64_t count, const REAL *states,
                const REAL *base, const REAL *context, REAL *steps, REAL *logits, REAL *judged, int64_t *latest,
                int64_t *found, REAL *numbers, REAL *predicted)
{
    const int64_t width = drafter->decoder->width, rank = drafter->rank, columns = drafter->head->out;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < rank; i++) {
            REAL sum = context[(row * count + j) * rank + i] + drafter->previous[latest[row] * rank + i];
            steps[row * rank + i] = sum > 0 ? sum : 0;
        }
    if (rank) product(drafter->out, steps, rank, rows, 0, logits);
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const REAL *mine = base + (row * count + j) * columns;
        for (int64_t i = 0; i < columns; i++) logits[row * columns + i] = (rank ? logits[row * columns + i] : 0) + mine[i];
    }
    statistics(logits, rows, columns, latest, judged);
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * count + j;
        if (drafter->ids) latest[row] = drafter->ids[latest[row]];
        found[at] = latest[row];
        memcpy(numbers + at * NUMBERS, judged + row * NUMBERS, NUMBERS * sizeof(REAL));
        if (!drafter->judge) continue;
        REAL sum = drafter->judge[width + rank];
        for (int64_t i = 0; i < width; i++) sum += drafter->judge[i] * states[at * width + i];
        for (int64_t i = 0; i < rank; i++) sum += drafter->judge[width + i] * steps[row * rank + i];
        predicted[at] = 1 / (1 + EXP(-sum));
    }
}

/* `count` tokens for each row with their NUMBERS and predicted acceptance, [row][token]. The cache lacks the places from
   `stored` on, and holds them afterwards. Returns how many at most, or 0 where there is no memory. */
int64_t propose(const struct drafter *drafter, const int64_t *row_tokens, int64_t token_stride,
                const int64_t *row_numbers, int64_t number_stride, int64_t *stored, int64_t rows, int64_t count,
                const struct seen *seen, const struct lines *past, const struct lines *source, int64_t *found,
                REAL *numbers, REAL *predicted)
{
    const struct decoder *decoder = drafter->decoder;
    const int64_t width = decoder->width, all = rows * count, columns = drafter->head->out, rank = drafter->rank;
    int64_t missing = 0, most = 1;
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = row_numbers[row * number_stride + LENGTH], own = length - stored[row];
        if (own < 1) own = 1, stored[row] = length - 1; /* the latest place is what a draft begins with */
        missing += own, most = own > most ? own : most;
    }
    int64_t needed = missing * 5 * width + all * (decoder->room + columns + rank) + rows * (columns + rank + NUMBERS);
    int64_t *tokens = malloc((3 * missing + 3 * rows) * sizeof(int64_t));
    REAL *joined = aligned_alloc(VECTOR, (needed * sizeof(REAL) + VECTOR - 1) / VECTOR * VECTOR);
    if (tokens && joined) {
        int64_t *places = tokens + missing, *owners = places + missing, *last = owners + missing;
        int64_t *lengths = last + rows, *latest = lengths + rows, n = 0;
        for (int64_t row = 0; row < rows; row++) {
            lengths[row] = row_numbers[row * number_stride + LENGTH];
            for (int64_t place = stored[row]; place < lengths[row]; place++, n++)
                tokens[n] = row_tokens[row * token_stride + place], places[n] = place, owners[n] = row;
            last[row] = n - 1, latest[row] = tokens[n - 1], stored[row] = lengths[row];
        }
        REAL *pairs = joined + 2 * missing * width, *features = pairs + 2 * missing * width;
        REAL *room = features + missing * width, *base = room + all * decoder->room, *context = base + all * columns;
        REAL *steps = context + all * rank, *logits = steps + rows * rank, *judged = logits + rows * columns, *states;
        struct lines here = *past;
        here.counts = lengths;
        #pragma omp parallel
        {
            share_recalling(drafter, tokens, places, owners, missing, seen, past, joined, pairs, features);
            #pragma omp for schedule(static)
            for (int64_t query = 0; query < all; query++)
                for (int64_t i = 0; i < width; i++)
                    room[query * width + i] =
                        features[last[query / count] * width + i] + drafter->queries[query % count * width + i];
            REAL *mine = share_querying(decoder, rows, count, &here, source, room);
            share_product(drafter->head, mine, width, all, 0, base);
            if (rank) share_product(drafter->context, mine, width, all, 0, context);
            #pragma omp single
            states = mine;
        }
        for (int64_t j = 0; j < count; j++)
            say(drafter, rows, j, count, states, base, context, steps, logits, judged, latest, found, numbers, predicted);
    }
    int64_t is_done = tokens && joined;
    free(tokens), free(joined);
    return is_done ? most : 0;
}

/* The hidden states of a window, [row][token], which said the tokens behind each row's latest. */
void remember(const REAL *hidden, int64_t rows, int64_t window, int64_t width, const int64_t *row_numbers,
              int64_t number_stride, const struct seen *seen)
{
    for (int64_t row = 0; row < rows; row++)
        memcpy(seen->first + row * seen->slot + row_numbers[row * number_stride + LENGTH] * width,
               hidden + row * window * width, window * width * sizeof(REAL));
}
