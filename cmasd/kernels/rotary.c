/* ------------------------------------------------------------------ rotary

   Decoders without a source whose queries and keys are rotated by their places: Llama and its kin. Several heads of
   queries share a head of keys; norms are root mean squares; a layer's feed-forward multiplies two products. Tokens come
   as embeddings. Threads are called together once for all layers, and meet after each part (`meet`). */

struct rms {
    const REAL *gain;
    double epsilon;
};

struct turn {
    const struct rms *first, *middle;              /* before attention, before the feed-forward */
    const struct rms *after_keep, *after_end;      /* of what a part adds, or null */
    const struct rms *of_queries, *of_keys;        /* of each head, or null */
    const struct layer *query, *key, *value, *keep; /* attention */
    const struct layer *gate, *up, *end;           /* feed-forward: end(activation(gate) * up) */
    const REAL *angles;                            /* [place][cosine, sine][half of a head] */
    int64_t span;                                  /* places that a query sees back, itself included; 0: all */
};

struct rotary {
    const struct turn *turns;
    const struct rms *last;
    int64_t count, width, heads, kept, head, inner; /* heads of queries, and of keys and values; width of each */
    int64_t places;                                 /* of angles; those behind are read as the last */
    int64_t activation;
    int64_t room; /* numbers of scratch for each token */
    double scale; /* of scores */
};

static void scaled(const struct rms *rms, const REAL *x, int64_t width, REAL *y)
{
    REAL squares = 0;
    for (int64_t i = 0; i < width; i++) squares += x[i] * x[i];
    const REAL scale = 1 / SQRT(squares / width + (REAL)rms->epsilon);
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * scale * rms->gain[i];
}

/* One head, normed and rotated in place. */
static void turned(const struct rms *rms, const REAL *angles, int64_t width, REAL *x)
{
    const int64_t half = width / 2;
    if (rms) scaled(rms, x, width, x);
    for (int64_t i = 0; i < half; i++) {
        const REAL low = x[i], high = x[half + i], cosine = angles[i], sine = angles[half + i];
        x[i] = low * cosine - high * sine;
        x[half + i] = high * cosine + low * sine;
    }
}

/* Queries and keys take their places; keys and values are left in the slots. */
static void share_turning(const struct rotary *rotary, const struct turn *turn, const struct window *window,
                          const struct lines *past, int64_t block, REAL *queries, REAL *keys, const REAL *values)
{
    const int64_t head = rotary->head, heads = rotary->heads, kept = rotary->kept, count = size_of(window);
    #pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < count; n++) {
        const int64_t run = run_of(window, n), start = window->starts[run], place = start + n - window->firsts[run];
        const int64_t position = start + depth_of(window, window->firsts[run], n);
        const int64_t angle = position < rotary->places ? position : rotary->places - 1;
        const REAL *angles = turn->angles + angle * head;
        const int64_t line = block * past->block + window->slots[run] * past->slot + 2 * place * head;
        for (int64_t h = 0; h < heads; h++) turned(turn->of_queries, angles, head, queries + (n * heads + h) * head);
        for (int64_t h = 0; h < kept; h++) {
            REAL *key = keys + (n * kept + h) * head;
            turned(turn->of_keys, angles, head, key);
            leave_line(past, line + h * past->head, key, head);
            leave_line(past, line + h * past->head + head, values + (n * kept + h) * head, head);
        }
    }
}

#define SEEN(WIDTH) case WIDTH: attend_one(query, past->first + line, count, WIDTH, scale, scores, sum); break;
#define HALF_SEEN(WIDTH) case WIDTH: attend_halves(query, halves + line, count, WIDTH, scale, scores, sum); break;

/* The heads of queries that share a head of keys, over `count` places from a line on. */
static void see(const struct lines *past, int64_t line, int64_t count, int64_t width, int64_t heads, REAL scale,
                const REAL *queries, REAL *sums)
{
    const uint16_t *halves = (const uint16_t *)past->first;
    REAL scores[count];
    for (int64_t head = 0; head < heads; head++) {
        const REAL *query = queries + head * width;
        REAL *sum = sums + head * width;
        if (past->is_narrow)
            switch (width) {
                HALF_SEEN(64) HALF_SEEN(128) HALF_SEEN(256)
                default: attend_halves(query, halves + line, count, width, scale, scores, sum);
            }
        else
            switch (width) {
                SEEN(64) SEEN(128) SEEN(256)
                default: attend_one(query, past->first + line, count, width, scale, scores, sum);
            }
    }
}

/* In a tree, whose paths are laid into the slot one after the other: a head of keys at a time. */
static void share_seeing_trees(const struct rotary *rotary, const struct turn *turn, const struct window *window,
                               const struct lines *past, int64_t block, const REAL *queries, const REAL *keys,
                               const REAL *values, REAL *sums)
{
    const int64_t width = rotary->head, heads = rotary->heads, kept = rotary->kept, group = heads / kept;
    #pragma omp for schedule(dynamic, 1) nowait
    for (int64_t task = 0; task < window->runs * kept; task++) {
        const int64_t run = task / kept, head = task % kept, first = window->firsts[run], start = window->starts[run];
        const int64_t *parents = window->parents + first, length = window->firsts[run + 1] - first;
        const int64_t slot = block * past->block + window->slots[run] * past->slot + head * past->head;
        const int64_t here = slot + 2 * start * width;
        const REAL *key = keys + (first * kept + head) * width, *value = values + (first * kept + head) * width;
        REAL path[2 * length * width];
        for (int64_t t = 0; t < length; t++) {
            const int64_t depth = lay_path(parents, t, key, kept * width, width, 2 * width, path);
            lay_path(parents, t, value, kept * width, width, 2 * width, path + width);
            leave_line(past, here, path, 2 * depth * width);
            const int64_t known = start + depth;
            const int64_t from = turn->span && turn->span < known ? known - turn->span : 0;
            const int64_t at = ((first + t) * heads + head * group) * width;
            see(past, slot + 2 * from * width, known - from, width, group, rotary->scale, queries + at, sums + at);
        }
        for (int64_t t = 0; t < length; t++) {
            leave_line(past, here + 2 * t * width, key + t * kept * width, width);
            leave_line(past, here + (2 * t + 1) * width, value + t * kept * width, width);
        }
    }
}

static void share_seeing(const struct rotary *rotary, const struct turn *turn, const struct window *window,
                         const struct lines *past, int64_t block, const REAL *queries, REAL *sums)
{
    const int64_t width = rotary->head, heads = rotary->heads, group = heads / rotary->kept, tokens = size_of(window);
    #pragma omp for schedule(dynamic, 2) nowait
    for (int64_t task = 0; task < tokens * heads; task++) {
        const int64_t n = task / heads, head = task % heads, run = run_of(window, n);
        const int64_t known = window->starts[run] + n - window->firsts[run] + 1;
        const int64_t from = turn->span && turn->span < known ? known - turn->span : 0;
        const int64_t line = block * past->block + window->slots[run] * past->slot + head / group * past->head;
        see(past, line + 2 * from * width, known - from, width, 1, rotary->scale, queries + task * width,
            sums + task * width);
    }
}

/* x += what a part added, normed where that is; then x as the next part wants it. */
static void share_joining(const struct rms *after, const struct rms *next, REAL *added, int64_t count, int64_t width,
                          REAL *x, REAL *normed)
{
    #pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < count; n++) {
        REAL *sum = x + n * width, *more = added + n * width;
        if (after) scaled(after, more, width, more);
        for (int64_t i = 0; i < width; i++) sum[i] += more[i];
        scaled(next, sum, width, normed + n * width);
    }
}

#define PIECE 1024 /* outputs of a feed-forward that a thread multiplies at a time */

/* Rows are cut alike, so that their numbers do not depend on the rows beside them. */
static void share_gating(int64_t activation, int64_t rows, int64_t inner, REAL *gate, const REAL *up)
{
    const int64_t pieces = (inner + PIECE - 1) / PIECE;
    #pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < rows * pieces; task++) {
        const int64_t from = task % pieces * PIECE, count = inner - from < PIECE ? inner - from : PIECE;
        REAL *mine = gate + task / pieces * inner + from;
        const REAL *other = up + task / pieces * inner + from;
        activate(activation, count, mine);
        for (int64_t i = 0; i < count; i++) mine[i] *= other[i];
    }
}

/* x (count, width) are embeddings, and are used up; `room` holds `rotary->room` numbers for each token. */
void rotate(const struct rotary *rotary, const struct window *window, const struct lines *past, REAL *x, REAL *room,
            REAL *out)
{
    const int64_t count = size_of(window), width = rotary->width, inner = rotary->inner;
    const int64_t wide = rotary->heads * rotary->head, narrow = rotary->kept * rotary->head;
    REAL *normed = room, *added = normed + count * width, *queries = added + count * width;
    REAL *keys = queries + count * wide, *values = keys + count * narrow, *sums = values + count * narrow;
    REAL *gate = sums + count * wide, *up = gate + count * inner;
    struct meeting meeting = {0};
    #pragma omp parallel
    {
        team = &meeting;
        #pragma omp for schedule(static) nowait
        for (int64_t n = 0; n < count; n++) scaled(rotary->turns->first, x + n * width, width, normed + n * width);
        meet();
        for (int64_t b = 0; b < rotary->count; b++) {
            const struct turn *turn = rotary->turns + b;
            const int is_last = b + 1 == rotary->count;
            const struct target attention[] = {{turn->query, queries}, {turn->key, keys}, {turn->value, values}};
            const struct target keep = {turn->keep, added}, forward[] = {{turn->gate, gate}, {turn->up, up}};
            const struct target end = {turn->end, added};
            share_joined(attention, 3, normed, width, count), meet();
            share_turning(rotary, turn, window, past, b, queries, keys, values), meet();
            if (window->parents) share_seeing_trees(rotary, turn, window, past, b, queries, keys, values, sums);
            else share_seeing(rotary, turn, window, past, b, queries, sums);
            meet();
            share_joined(&keep, 1, sums, wide, count), meet();
            share_joining(turn->after_keep, turn->middle, added, count, width, x, normed), meet();
            share_joined(forward, 2, normed, width, count), meet();
            share_gating(rotary->activation, count, inner, gate, up), meet();
            share_joined(&end, 1, gate, inner, count), meet();
            share_joining(turn->after_end, is_last ? rotary->last : turn[1].first, added, count, width, x,
                          is_last ? out : normed);
            meet();
        }
    }
}
