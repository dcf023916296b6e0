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

/* What the verifier is shown, a run for each row: its last token, then as much of its draft as is sent. */
void show(const int64_t *numbers, int64_t number_stride, const int64_t *row_tokens, int64_t token_stride,
          const int64_t *draft, const int64_t *lengths, int64_t rows, int64_t drafted, int64_t *tokens, int64_t *slots,
          int64_t *starts, int64_t *firsts)
{
    firsts[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t *out = tokens + firsts[row], length = lengths ? lengths[row] : 0;
        slots[row] = row, starts[row] = numbers[row * number_stride + LENGTH] - 1;
        out[0] = row_tokens[row * token_stride + starts[row]];
        memcpy(out + 1, draft + row * drafted, length * sizeof(int64_t));
        firsts[row + 1] = firsts[row] + 1 + length;
    }
}

static int64_t is_one_of(int64_t token, const int64_t *ids, int64_t count)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) found |= token == ids[i];
    return found;
}

/* How much of each draft counts: what lies behind an end of sequence does not. */
void until_end(const int64_t *draft, int64_t rows, int64_t drafted, const int64_t *eos, int64_t eos_count,
               const int64_t *room, int64_t *lengths)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = 0, is_end = 0, most = room[row] < drafted ? room[row] : drafted;
        for (; length < most && !is_end; length++) is_end = is_one_of(draft[row * drafted + length], eos, eos_count);
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
            is_end = is_one_of(out[count], eos, eos_count);
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

/* A drafter's cache holds all tokens of a draft but its last; those that were accepted stay. */
void keep(int64_t *held, int64_t rows, const int64_t *accepted, const int64_t *drafted)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t fed = drafted[row] ? drafted[row] - 1 : 0;
        held[row] += accepted[row] < fed ? accepted[row] : fed;
    }
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

void trace(const REAL *logits, const int64_t *firsts, int64_t rows, int64_t window, int64_t columns,
           const int64_t *emitted, const int64_t *counts, const int64_t *accepted, const int64_t *lengths, const float *confidence,
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
            const REAL *z = logits + (firsts[row] + t) * columns;
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

