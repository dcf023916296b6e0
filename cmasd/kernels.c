/* What torch has no kernel for on a CPU; built and called by kernels.py. REAL is float or double. */

#include <math.h>
#include <stdint.h>
#include <string.h>

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

void attend(const REAL *queries, int64_t stride, const REAL *fresh, REAL *lines, int64_t slot_stride,
            int64_t head_stride, const int64_t *counts, int64_t rows, int64_t window, int64_t heads, int64_t width,
            REAL scale, REAL *out)
{
    #pragma omp parallel for schedule(dynamic, 4) if (rows * heads > 4)
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

/* ------------------------------------------------------------------ logits

   Of each row z: where the largest is (the first of equals), and, unless `numbers` is null,
   z1, z2 (the two largest), log sum exp(z - z1), sum p (z - z1) with p = softmax(z). */

static REAL most(const REAL *z, int64_t count, REAL least)
{
    for (int64_t i = 0; i < count; i++) least = z[i] > least ? z[i] : least;
    return least;
}

void statistics(const REAL *logits, int64_t rows, int64_t columns, int64_t *tokens, REAL *numbers)
{
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const REAL *z = logits + row * columns;
        REAL top = most(z, columns, z[0]), mass = 0, mean = 0;
        int64_t at = 0;
        while (z[at] < top) at++;
        tokens[row] = at;
        if (!numbers) continue;
        REAL before = most(z, at, at ? z[0] : z[columns - 1]), second = most(z + at + 1, columns - at - 1, before);
        for (int64_t i = 0; i < columns; i++) {
            REAL below = z[i] - top, share = 0;
            below = below < NOTHING ? NOTHING : below;
            share = EXP(below);
            mass += share;
            mean += share * below;
        }
        REAL *out = numbers + 4 * row;
        out[0] = top, out[1] = second, out[2] = LOG(mass), out[3] = mean / mass;
    }
}
