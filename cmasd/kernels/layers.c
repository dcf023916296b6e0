/* ------------------------------------------------------------------ layers

   Tokens to hidden states, layer by layer, over stored keys and values of the output so far and of the source, or over
   each other; threads are called together once for all of it. Norms lie before each part of a layer, or in its last
   product. An encoder is a decoder without a source, whose tokens see all of their run. */

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
    int64_t room; /* numbers of scratch for each token: 4 * width, and 3 * width or the widest inner product's outputs */
};

/* Where there is a norm, all rows of x normalised, in `room`. */
static const REAL *share_norm(const struct norm *norm, const REAL *x, int64_t count, int64_t width, REAL *room)
{
    if (!norm) return x;
    #pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < count; n++) normalised(norm, x + n * width, width, room + n * width);
    meet();
    return room;
}

/* With `is_whole` runs are whole sources, whose places are counted without the padding id. */
static void share_embedding(const struct decoder *decoder, const struct window *window, int is_whole, REAL *x)
{
    const int64_t width = decoder->width, base = window->firsts[0];
    #pragma omp for schedule(static) nowait
    for (int64_t run = 0; run < window->runs; run++)
        for (int64_t n = window->firsts[run], pads = 0; n < window->firsts[run + 1]; n++) {
            int64_t place = window->starts[run] + depth_of(window, window->firsts[run], n) - pads, id = window->tokens[n];
            if (is_whole) pads += id == decoder->padding;
            if (decoder->padding >= 0) place = id == decoder->padding ? 0 : place + 1;
            place = place < decoder->places ? place : decoder->places - 1;
            id = id < decoder->vocabulary ? id : decoder->vocabulary - 1;
            const REAL *token = decoder->tokens + id * width, *position = decoder->positions + place * width;
            REAL *out = x + (n - base) * width;
            for (int64_t i = 0; i < width; i++) out[i] = token[i] + position[i];
            normalised(decoder->embedded, out, width, out);
        }
    meet();
}

static void share_last_norm(const struct norm *norm, const REAL *x, int64_t count, int64_t width, REAL *out)
{
    #pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < count; n++)
        if (normalised(norm, x + n * width, width, out + n * width) != out + n * width)
            memcpy(out + n * width, x + n * width, width * sizeof(REAL));
}

/* How tokens see: those of their slot up to themselves, which they join; all that they join it with, at once; or what
   is stored, which they do not join. */
enum { FRESH, WHOLE, STORED };

/* All layers over x, which lies at the beginning of `room`; the states come out in that room, where that is, is returned. */
static REAL *share_layers(const struct decoder *decoder, const struct window *window, int how, const struct lines *past,
                          const struct lines *source, REAL *room)
{
    const int64_t width = decoder->width, count = size_of(window), size = count * width, heads = decoder->heads;
    REAL *x = room, *other = x + size, *normed = other + size, *sums = normed + size, *wide = sums + size, *swapped;
    for (int64_t b = 0; b < decoder->count; b++) {
        const struct block *block = decoder->blocks + b;
        const int64_t stride = how == STORED ? width : 3 * width;
        share_product(block->project, share_norm(block->first[0], x, count, width, normed), width, count, 0, wide);
        if (how == WHOLE) share_storing(window, past, b, wide + width, stride, heads, 2 * width / heads);
        share_attention(window, past, b, wide, stride, how == FRESH ? wide + width : 0, heads, width / heads, sums);
        share_product(block->keep, sums, width, count, x, other);
        swapped = x, x = other, other = swapped;
        if (block->query) {
            share_product(block->query, share_norm(block->first[1], x, count, width, normed), width, count, 0, wide);
            share_attention(window, source, b, wide, width, 0, heads, width / heads, sums);
            share_product(block->add, sums, width, count, x, other);
            swapped = x, x = other, other = swapped;
        }
        share_product(block->inner, share_norm(block->first[2], x, count, width, normed), width, count, 0, wide);
        share_product(block->end, wide, block->inner->out, count, x, other);
        swapped = x, x = other, other = swapped;
    }
    return x;
}

/* Threads share the outputs of each product, which each of them has to wait for and to fetch from the others' caches; or,
   where there are tokens enough that reading all weights does not count, the runs, each in a part of its own. */
#define PART_TOKENS 4

static int64_t parts_of(const struct window *window)
{
    int64_t threads = omp_get_max_threads();
    return window->runs < threads || size_of(window) < PART_TOKENS * threads ? 1 : threads;
}

/* Does what is given for each part of a window: `mine`, whose first token is the `token`th. A single part is no loop of
   its own: threads inside a team of one would be started anew each time. */
#define SHARE_RUNS(...)                                                                                                \
    do {                                                                                                               \
        const int64_t parts = parts_of(window);                                                                        \
        if (parts == 1) {                                                                                              \
            const struct window mine = *window;                                                                        \
            const int64_t token = 0;                                                                                   \
            __VA_ARGS__;                                                                                               \
            break;                                                                                                     \
        }                                                                                                              \
        _Pragma("omp parallel for schedule(dynamic, 1)")                                                               \
        for (int64_t part = 0; part < parts; part++) {                                                                 \
            const struct window mine = part_of(window, part, parts);                                                   \
            const int64_t token = mine.firsts[0] - window->firsts[0];                                                  \
            if (mine.runs) __VA_ARGS__;                                                                                \
        }                                                                                                              \
    } while (0)

static void states_together(const struct decoder *decoder, const struct window *window, int how,
                            const struct lines *past, const struct lines *source, REAL *room, REAL *out)
{
    const int64_t width = decoder->width, count = size_of(window);
    struct meeting meeting = {0};
    #pragma omp parallel
    {
        team = &meeting;
        share_embedding(decoder, window, how == WHOLE, room);
        const REAL *x = share_layers(decoder, window, how, past, source, room);
        share_last_norm(decoder->last, x, count, width, out);
    }
}

/* `room` holds `decoder->room` numbers for each token. */
void decode(const struct decoder *decoder, const struct window *window, const struct lines *past,
            const struct lines *source, REAL *room, REAL *out)
{
    SHARE_RUNS(states_together(decoder, &mine, FRESH, past, source, room + token * decoder->room,
                               out + token * decoder->width));
}

/* `past` is scratch for keys and values, in as many slots as there are runs; its counts are the runs' lengths. */
void encode(const struct decoder *encoder, const struct window *window, const struct lines *past, REAL *room, REAL *out)
{
    SHARE_RUNS(states_together(encoder, &mine, WHOLE, past, 0, room + token * encoder->room,
                               out + token * encoder->width));
}

static void fill_together(const struct decoder *decoder, const struct window *window, const REAL *encoded,
                          const struct lines *source, REAL *room)
{
    const int64_t width = decoder->width, count = size_of(window), pair = 2 * width / decoder->heads;
    struct meeting meeting = {0};
    #pragma omp parallel
    {
        team = &meeting;
        for (int64_t b = 0; b < decoder->count; b++) {
            share_product(decoder->blocks[b].store, encoded, width, count, 0, room);
            share_storing(window, source, b, room, 2 * width, decoder->heads, pair);
        }
    }
}

/* The source's keys and values, in every block. `room` holds two widths for each token. */
void fill(const struct decoder *decoder, const struct window *window, const REAL *encoded, const struct lines *source,
          REAL *room)
{
    const int64_t width = decoder->width;
    SHARE_RUNS(fill_together(decoder, &mine, encoded + token * width, source, room + token * 2 * width));
}
