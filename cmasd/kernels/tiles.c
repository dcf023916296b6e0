/* ------------------------------------------------------------------ tiles

   Products by a processor that multiplies tiles (AMX): SIDE rows of ROW bytes with SIDE outputs of as many, at the price
   of a few of its other instructions, so that checking some tokens of many rows costs little more than one of each.
   Of INT8 weights these are the very sums that `rounded_tile` makes. PAIRED weights are numbers of 16 bits (bfloat16)
   that are kept [pair of inputs][output][input]; an input is taken apart into three of 16 bits that add up to it, so
   that each product is that of the whole numbers, and only sums are rounded, as everywhere. An input's three are rows of
   a tile side by side. Each sum goes over the inputs in order, whatever rows are beside it. */

#if defined(QUAD) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define TILED
#define SIDE 16
#define ROW 64
#define FEWEST 4               /* rows of INT8: of fewer, reading weights is all */
#define ROUNDED_BYTES (2 << 20) /* of inputs at a time, on the stack of each thread */

static int64_t may_tile;

/* The system gives a process these registers when it asks for them. */
static int64_t ask_for_tiles(void)
{
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    return may_tile = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

/* Registers 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. */
static void shape_tiles(int64_t rows)
{
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = ROW, shape.rows[i] = i < 6 ? rows : SIDE;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}

#define LOAD(TILE, FROM, STRIDE)                                                                                       \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"((int64_t)(STRIDE)))
#define STORE(TILE, TO)                                                                                                \
    __asm__ volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"((int64_t)ROW) : "memory")
#define MULTIPLY(SUMS, INPUTS, WEIGHTS)                                                                                \
    do {                                                                                                               \
        if (format == INT8) __asm__ volatile("tdpbusd %tmm" #WEIGHTS ", %tmm" #INPUTS ", %tmm" #SUMS);                 \
        else __asm__ volatile("tdpbf16ps %tmm" #WEIGHTS ", %tmm" #INPUTS ", %tmm" #SUMS);                              \
    } while (0)
#define CLEAR "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3"

/* Sums of a tile of inputs with all strips of a panel: of each strip SIDE rows of SIDE outputs. */
static inline __attribute__((always_inline)) void sum_tile(
    int format, const char *inputs, int64_t line, const char *strips, char *sums)
{
    const int64_t strip = line * SIDE;
    __asm__ volatile(CLEAR : : : "memory");
    for (int64_t i = 0; i < line; i += ROW, inputs += ROW, strips += SIDE * ROW) {
        LOAD(4, inputs, line);
        LOAD(6, strips, ROW);
        MULTIPLY(0, 4, 6);
        LOAD(7, strips + strip, ROW);
        MULTIPLY(1, 4, 7);
        LOAD(6, strips + 2 * strip, ROW);
        MULTIPLY(2, 4, 6);
        LOAD(7, strips + 3 * strip, ROW);
        MULTIPLY(3, 4, 7);
    }
    STORE(0, sums);
    STORE(1, sums + SIDE * ROW);
    STORE(2, sums + 2 * SIDE * ROW);
    STORE(3, sums + 3 * SIDE * ROW);
}

/* The same of two tiles of inputs, `next` bytes apart, with two strips, which read each of them half as often; sums of
   the second are PANEL_BYTES behind those of the first. */
#define PANEL_BYTES (COLUMNS * SIDE * ROW)

static inline __attribute__((always_inline)) void sum_two_tiles(
    int format, const char *inputs, int64_t next, int64_t line, const char *strips, char *sums)
{
    const int64_t strip = line * SIDE;
    __asm__ volatile(CLEAR : : : "memory");
    for (int64_t i = 0; i < line; i += ROW, inputs += ROW, strips += SIDE * ROW) {
        LOAD(4, inputs, line);
        LOAD(6, strips, ROW);
        MULTIPLY(0, 4, 6);
        LOAD(7, strips + strip, ROW);
        MULTIPLY(1, 4, 7);
        LOAD(5, inputs + next, line);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
    }
    STORE(0, sums);
    STORE(1, sums + SIDE * ROW);
    STORE(2, sums + PANEL_BYTES);
    STORE(3, sums + PANEL_BYTES + SIDE * ROW);
}

#define PARTS 3 /* of a number of 24 binary digits, which are 8 each */

/* The leading digits of numbers: all 32 bits of those that have no more, which are then taken off. */
static inline __m256i leading(__m512 *rest)
{
    const __m512i digits = _mm512_castps_si512(*rest);
    *rest -= _mm512_castsi512_ps(_mm512_and_si512(digits, _mm512_set1_epi32(-1 << 16)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(digits, 16));
}

static void take_apart(const REAL *x, int64_t in, char *high, char *middle, char *low)
{
    for (int64_t i = 0; i < in; i += LANES) {
        __m512 rest = _mm512_loadu_ps(x + i);
        _mm256_store_si256((__m256i *)high + i / LANES, leading(&rest));
        _mm256_store_si256((__m256i *)middle + i / LANES, leading(&rest));
        _mm256_store_si256((__m256i *)low + i / LANES, leading(&rest));
    }
}

/* Some rows on their way out of tiles. */
static inline __attribute__((always_inline)) void put_tiles(int format, int64_t rows, const struct layer *layer,
                                                            int64_t first, const void *sums, const REAL *each, REAL *y)
{
    const vector *bias = (const vector *)(layer->bias + first), *scales = (const vector *)(layer->scales + first);
    for (int64_t r = 0; r < rows; r++) {
        vector column[COLUMNS];
        for (int64_t c = 0; c < COLUMNS; c++) {
            if (format == INT8) {
                const ints sum = *((const ints *)sums + c * SIDE + r) + *((const ints *)(layer->offsets + first) + c);
                vector scale = scales[c] * each[r];
                __asm__("" : "+v"(scale)); /* as in `rounded_tile` */
                column[c] = __builtin_convertvector(sum, vector) * scale + bias[c];
            } else {
                const vector *parts = (const vector *)sums + c * SIDE + r * PARTS;
                vector small = parts[2] + parts[1];
                __asm__("" : "+v"(small)); /* the compiler would add in another order */
                column[c] = small + parts[0] + bias[c];
            }
        }
        put(layer, first, column, y + r * layer->out);
    }
}

/* Every thread prepares the inputs for itself, of so many rows at a time as have room on its stack. */
static inline __attribute__((always_inline)) void share_tiles(
    int format, const struct target *targets, int64_t joined, const REAL *x, int64_t stride, int64_t rows)
{
    const int64_t in = targets->layer->in, panels = panels_of(targets, joined), parts = format == INT8 ? 1 : PARTS;
    const int64_t line = format == INT8 ? in : 2 * in, most = SIDE / parts, room = ROUNDED_BYTES / (most * parts * line);
    const int64_t at_once = most * (room ? room : 1);
    for (int64_t done = 0, count, left = (rows + at_once - 1) / at_once; done < rows; done += count, x += count * stride) {
        count = (rows - done + left - 1) / left, left--;
        const int64_t tiles = (count + most - 1) / most, size = (count + tiles - 1) / tiles;
        char inputs[tiles * size * parts * line] __attribute__((aligned(ROW)));
        REAL each[count];
        for (int64_t r = 0; r < count; r++) {
            char *to = inputs + r * parts * line;
            if (format == INT8) each[r] = round_row(x + r * stride, in, (uint8_t *)to);
            else take_apart(x + r * stride, in, to, to + line, to + 2 * line);
        }
        shape_tiles(size * parts);
        deal(targets, panels);
        #pragma omp for schedule(runtime) nowait
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t own = panel;
            const struct target *target = target_of(targets, &own);
            const struct layer *layer = target->layer;
            const int64_t first = own * PANEL;
            const char *strips = layer->weights + own * COLUMNS * line * SIDE;
            char sums[2 * PANEL_BYTES] __attribute__((aligned(ROW)));
            for (int64_t row = 0; row < count;) {
                const char *tile = inputs + row * parts * line;
                const int64_t abreast = row + size < count ? 2 : 1, next = size * parts * line;
                if (abreast == 1) sum_tile(format, tile, line, strips, sums);
                for (int64_t c = 0; abreast == 2 && c < COLUMNS; c += 2)
                    sum_two_tiles(format, tile, next, line, strips + c * line * SIDE, sums + c * SIDE * ROW);
                for (int64_t one = 0; one < abreast; one++, row += size)
                    put_tiles(format, count - row < size ? count - row : size, layer, first, sums + one * PANEL_BYTES,
                              each + row, target->y + (done + row) * layer->out);
            }
        }
        __asm__ volatile("tilerelease");
    }
}
#endif

/* Inputs side by side in weights that are PAIRED; 0 where there are no such. */
int64_t pairs_inputs(void)
{
#ifdef TILED
    return ask_for_tiles() ? 2 : 0;
#else
    return 0;
#endif
}
