/* ------------------------------------------------------------------ fours

   Products with weights of 4 bits: GROUP inputs of an output share a scale (16 bits, bfloat16), and each weight is one
   of 16 LEVELS of it, which lie closer where most weights are. Strips are [group][two quads][output][input]: the low
   half of a byte is of the first quad of inputs, the high half of the second. Scales are [group][output].
   Where the processor multiplies bytes, inputs are rounded too, with a scale for each row and group. Each sum goes over
   the groups in order, whatever rows are beside it. */

#ifdef NARROW
#ifdef QUAD
#define ABREAST_INPUTS QUAD
#else
#define ABREAST_INPUTS 1
#endif
#define PAIRS (GROUP / ABREAST_INPUTS / 2)
static const int8_t levels[16] __attribute__((aligned(16))) = {LEVELS};

static int64_t groups_of(const struct layer *layer) { return (layer->in + GROUP - 1) / GROUP; }

/* Of the strip that begins with this output. */
static inline vector scale_of(const struct layer *layer, int64_t first, int64_t group)
{
    return widened((const uint16_t *)layer->scales + first * groups_of(layer) + group * LANES, BFLOAT16);
}

#ifdef QUAD
/* A row's inputs of one group to bytes; returns what one of them is. Levels are raised by ZERO to be multiplied, and
   `start` takes that back. */
static REAL round_group(const REAL *x, int64_t count, int8_t *bytes, int32_t *start)
{
    REAL top = 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) top = FABS(x[i]) > top ? FABS(x[i]) : top;
    const REAL each = top > (REAL)1e-30 ? top / 127 : 1, scale = 1 / each;
    for (int64_t i = 0; i < count; i++) bytes[i] = (int8_t)((int32_t)(x[i] * scale + (ZERO + (REAL)0.5)) - ZERO);
    for (int64_t i = count; i < GROUP; i++) bytes[i] = 0;
    for (int64_t i = 0; i < GROUP; i++) sum += bytes[i];
    *start = -ZERO * sum;
    return each;
}

static inline __attribute__((always_inline)) void fours_tile(
    int64_t rows, const struct layer *layer, int64_t first, const int8_t *x, const REAL *each, const int32_t *starts, REAL *y)
{
    const int64_t groups = groups_of(layer);
    const char *weights = layer->weights + first * groups * GROUP / 2;
    const vector *bias = (const vector *)(layer->bias + first);
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i raised = _mm512_xor_si512(
        _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)levels)), _mm512_set1_epi8(-128));
    vector sums[TILE][COLUMNS];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] = (vector){0};
    for (int64_t g = 0; g < groups; g++) {
        ints dots[TILE][COLUMNS];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < COLUMNS; c++) dots[r][c] = (ints){0} + starts[r * groups + g];
        for (int64_t p = 0; p < PAIRS; p++)
            for (int64_t c = 0; c < COLUMNS; c++) {
                const __m512i both = _mm512_loadu_si512(weights + ((c * groups + g) * PAIRS + p) * VECTOR);
                const __m512i here = _mm512_shuffle_epi8(raised, _mm512_and_si512(both, low));
                const __m512i next = _mm512_shuffle_epi8(raised, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
                for (int64_t r = 0; r < rows; r++) {
                    int32_t four[2];
                    memcpy(four, x + (r * groups + g) * GROUP + 2 * p * QUAD, 2 * QUAD);
                    dots[r][c] = DOT(dots[r][c], here, (ints){0} + four[0]);
                    dots[r][c] = DOT(dots[r][c], next, (ints){0} + four[1]);
                }
            }
        for (int64_t c = 0; c < COLUMNS; c++) {
            const vector scale = scale_of(layer, first + c * LANES, g);
            for (int64_t r = 0; r < rows; r++) {
                vector one = scale * each[r * groups + g];
                __asm__("" : "+v"(one)); /* as in `rounded_tile` */
                sums[r][c] += __builtin_convertvector(dots[r][c], vector) * one;
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] += bias[c];
        put(layer, first, sums[r], y + r * layer->out);
    }
}

#define FOURS(ROWS)                                                                                                    \
    case ROWS:                                                                                                         \
        fours_tile(ROWS, layer, first, bytes + row * groups * GROUP, each + row * groups, starts + row * groups,       \
                   y + row * layer->out), row += ROWS;                                                                 \
        break;

/* As `share_rounded`. */
static void share_fours(const struct target *targets, int64_t joined, const REAL *x, int64_t stride, int64_t rows)
{
    const int64_t in = targets->layer->in, groups = groups_of(targets->layer), panels = panels_of(targets, joined);
    for (int64_t done = 0, count; done < rows; done += count, x += count * stride) {
        count = rows - done < TILES * TILE ? rows - done : TILES * TILE;
        int8_t bytes[count * groups * GROUP];
        REAL each[count * groups];
        int32_t starts[count * groups];
        for (int64_t r = 0; r < count; r++)
            for (int64_t g = 0, at = r * groups; g < groups; g++, at++)
                each[at] = round_group(x + r * stride + g * GROUP, in - g * GROUP < GROUP ? in - g * GROUP : GROUP,
                                       bytes + at * GROUP, starts + at);
        SHARE_PANELS(FOURS)
    }
}
#else

/* LANES bytes to the numbers of their low or high halves, in LEVELS. */
static inline __attribute__((always_inline)) vector levels_of(const char *weights, int is_high)
{
#if defined(__AVX2__)
#ifdef __AVX512F__
    const __m128i both = _mm_loadu_si128((const __m128i *)weights);
#else
    const __m128i both = _mm_loadl_epi64((const __m128i *)weights);
#endif
    const __m128i codes = _mm_and_si128(is_high ? _mm_srli_epi16(both, 4) : both, _mm_set1_epi8(15));
    const __m128i found = _mm_shuffle_epi8(_mm_load_si128((const __m128i *)levels), codes);
    return FROM_INT8(&found);
#else
    vector found;
    for (int64_t i = 0; i < LANES; i++) found[i] = levels[is_high ? (uint8_t)weights[i] >> 4 : weights[i] & 15];
    return found;
#endif
}

/* Inputs stay whole: a group of weights is widened, and multiplied as in `product_tile`. */
static inline __attribute__((always_inline)) void fours_tile(
    int64_t rows, const struct layer *layer, int64_t first, const REAL *x, int64_t stride, REAL *y)
{
    const int64_t in = layer->in, groups = groups_of(layer);
    const char *weights = layer->weights + first * groups * GROUP / 2;
    const vector *bias = (const vector *)(layer->bias + first);
    vector sums[TILE][COLUMNS], wide[GROUP][COLUMNS];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] = bias[c];
    for (int64_t g = 0; g < groups; g++) {
        const int64_t count = in - g * GROUP < GROUP ? in - g * GROUP : GROUP;
        const REAL *inputs = x + g * GROUP;
        for (int64_t c = 0; c < COLUMNS; c++) {
            const vector scale = scale_of(layer, first + c * LANES, g);
            for (int64_t i = 0; i < GROUP; i++)
                wide[i][c] = scale * levels_of(weights + ((c * groups + g) * PAIRS + i / 2) * LANES, i % 2);
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < COLUMNS; c++) sums[r][c] += inputs[r * stride + i] * wide[i][c];
    }
    for (int64_t r = 0; r < rows; r++) put(layer, first, sums[r], y + r * layer->out);
}

#define OF_FOURS(ROWS) \
    case 8 * INT4 + ROWS: fours_tile(ROWS, layer, first, x + row * stride, stride, y + row * out); break;
#endif
#endif
