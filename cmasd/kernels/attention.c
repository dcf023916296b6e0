/* ------------------------------------------------------------------ attention

   Runs of tokens over slots of different lengths.

   lines[block][slot][head][position] = key, value     `width` numbers each
   counts[slot]                                        positions that count

   With `fresh`, every token of a run first leaves its key and value behind, and sees what was there before the run and
   the run up to itself, in a tree its ancestors and itself; without, it sees exactly counts[slot] positions. A row reads
   no further than it is long, and its sums do not depend on the rows or on the tokens beside it. */

struct lines {
    REAL *first;
    const int64_t *counts;
    int64_t block, slot, head; /* strides */
    int64_t is_narrow;         /* whether these are halves (halves.c): of `rotate`, and of a source */
    const int64_t *where;      /* by slot the one whose lines are its own; null: itself */
};

static int64_t line_of(const struct lines *lines, int64_t block, int64_t slot)
{
    return block * lines->block + (lines->where ? lines->where[slot] : slot) * lines->slot;
}

/* Of the cache's numbers, from the given one on. */
static inline void leave_line(const struct lines *past, int64_t place, const REAL *x, int64_t width)
{
    if (!past->is_narrow) {
        memcpy(past->first + place, x, width * sizeof(REAL));
        return;
    }
    uint16_t *halves = (uint16_t *)past->first + place;
    for (int64_t i = 0; i < width; i++) halves[i] = narrowed(x[i]);
}

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
#define KNOWN_HALF(WIDTH) case WIDTH: attend_halves(query, half, count, WIDTH, scale, scores, sum); break;

/* Where the slot's places from the run's start on are `lines`, the lines that the tth token of a run sees there, itself the
   last: as if its ancestors were all there is, so that sums are those of a run of these. Returns how many there are.
   `part` is the half of a line, or all of it, that is found `stride` numbers apart. */
static int64_t lay_path(const int64_t *parents, int64_t t, const REAL *part, int64_t stride, int64_t part_width,
                        int64_t line_width, REAL *lines)
{
    int64_t depth = 0, at;
    for (at = t; (at = parents[at]) >= 0;) depth++;
    at = t;
    for (int64_t i = depth; i >= 0; i--, at = parents[at])
        memcpy(lines + i * line_width, part + at * stride, part_width * sizeof(REAL));
    return depth + 1;
}

static void share_attention(const struct window *window, const struct lines *lines, int64_t block, const REAL *queries,
                            int64_t stride, const REAL *fresh, int64_t heads, int64_t width, REAL *out)
{
    const REAL scale = 1 / sqrt((double)width);
    #pragma omp for schedule(dynamic, 4) nowait
    for (int64_t group = 0; group < window->runs * heads; group++) {
        int64_t run = group / heads, head = group % heads, owner = window->slots[run];
        int64_t first = window->firsts[run] - window->firsts[0], length = window->firsts[run + 1] - window->firsts[run];
        int64_t known = fresh ? window->starts[run] : lines->counts[owner];
        const int64_t line = line_of(lines, block, owner) + head * lines->head;
        REAL *slot = lines->first + line;
        const uint16_t *half = (const uint16_t *)lines->first + line;
        const int64_t *parents = fresh && window->parents ? window->parents + window->firsts[run] : 0;
        REAL scores[known + length];
        for (int64_t t = 0; t < length; t++) {
            int64_t n = first + t, count = fresh ? known + t + 1 : known;
            const REAL *query = queries + n * stride + head * width;
            REAL *sum = out + (n * heads + head) * width;
            if (parents)
                count = known + lay_path(parents, t, fresh + first * stride + 2 * head * width, stride, 2 * width,
                                         2 * width, slot + 2 * known * width);
            else if (fresh)
                memcpy(slot + 2 * (count - 1) * width, fresh + n * stride + 2 * head * width, 2 * width * sizeof(REAL));
            if (lines->is_narrow)
                switch (width) {
                    KNOWN_HALF(32) KNOWN_HALF(64) KNOWN_HALF(128)
                    default: attend_halves(query, half, count, width, scale, scores, sum);
                }
            else
                switch (width) {
                    KNOWN(32) KNOWN(64) KNOWN(128)
                    default: attend_one(query, slot, count, width, scale, scores, sum);
                }
        }
        for (int64_t t = 0; parents && t < length; t++)
            memcpy(slot + 2 * (known + t) * width, fresh + (first + t) * stride + 2 * head * width,
                   2 * width * sizeof(REAL));
    }
    meet();
}

/* Every token's (key, value) head by head, at `fresh`, to its place of its slot. */
static void share_storing(const struct window *window, const struct lines *lines, int64_t block, const REAL *fresh,
                          int64_t stride, int64_t heads, int64_t pair)
{
    #pragma omp for schedule(static) nowait
    for (int64_t run = 0; run < window->runs; run++) {
        int64_t first = window->firsts[run] - window->firsts[0], length = window->firsts[run + 1] - window->firsts[run];
        REAL *slot = lines->first + line_of(lines, block, window->slots[run]) + window->starts[run] * pair;
        for (int64_t t = 0; t < length; t++)
            for (int64_t head = 0; head < heads; head++)
                memcpy(slot + head * lines->head + t * pair, fresh + (first + t) * stride + head * pair,
                       pair * sizeof(REAL));
    }
    meet();
}

void attend(const struct window *window, const struct lines *lines, const REAL *queries, int64_t heads, int64_t width,
            REAL *out)
{
    struct meeting meeting = {0};
    #pragma omp parallel if (window->runs * heads > 4)
    {
        team = &meeting;
        share_attention(window, lines, 0, queries, heads * width, 0, heads, width, out);
    }
}
