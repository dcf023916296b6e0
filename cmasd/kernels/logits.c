/* ------------------------------------------------------------------ logits

   Of each row z: where the largest is (the first of equals), and, unless `numbers` is null, the `LogitNumbers` of
   cmasd/signals.py. */

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
        REAL ratio = EXP(gap < NOTHING ? NOTHING : gap), *out = numbers + LOGIT_WIDTH * row;
        out[LOGIT_TOP] = top;
        out[LOGIT_LOG_MASS] = LOG(mass);
        out[LOGIT_ENTROPY] = entropy < 0 ? 0 : entropy > 1 ? 1 : entropy;
        out[LOGIT_MARGIN] = (1 - ratio) / (1 + ratio);
        out[LOGIT_SOFTMAX] = (1 - ratio) / mass;
        out[LOGIT_MAX_PROB] = 1 / mass;
    }
}

/* Of each row, how many leading tokens of its draft have the largest logit, and the token that has it behind those. The
   logits behind a row's last token are at firsts[row], those behind its draft follow. */
void accept(const REAL *logits, const int64_t *firsts, const int64_t *draft, const int64_t *lengths, int64_t rows,
            int64_t drafted, int64_t columns, int64_t *accepted, int64_t *next)
{
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        int64_t count = 0, best;
        while (best = largest(logits + (firsts[row] + count) * columns, columns),
               count < lengths[row] && draft[row * drafted + count] == best)
            count++;
        accepted[row] = count, next[row] = best;
    }
}

