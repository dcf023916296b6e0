/* ------------------------------------------------------------------ rows

   Small work on whole numbers, one call each: in tensor operations it took longer than the model's forward. `numbers`
   has the `RowNumbers` of cmasd/signals.py for each slot; the rows are those of the first slots. */

/* How many tokens each row may draft, of at most `most`. */
void room(const int64_t *numbers, int64_t number_stride, int64_t rows, int64_t most, int64_t *rooms)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t left = numbers[row * number_stride + ROW_LIMIT] - numbers[row * number_stride + ROW_LENGTH] - 1;
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
        slots[row] = row, starts[row] = numbers[row * number_stride + ROW_LENGTH] - 1;
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
        int64_t *number = numbers + row * number_stride, *to = tokens + row * token_stride + number[ROW_LENGTH];
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
        number[ROW_ITERATIONS]++;
        if (!drafted) continue;
        number[ROW_DRAFTED_TOKENS] += length;
        number[ROW_ACCEPTED_TOKENS] += kept;
        number[ROW_DRAFTING_ROW_ITERATIONS] += length > 0;
        number[ROW_ROLLBACKS] += accepted[row] < length && accepted[row] < count;
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
        number[ROW_LENGTH] += counts[row];
        if (ended[row]) number[ROW_LIMIT] = 0;
        if (number[ROW_LENGTH] >= number[ROW_LIMIT]) done[count++] = row;
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
   is given, with what an iteration or a token holds that nobody drafted. Who proposed a token is at its row's and its
   place's steps of `sources`; null: a model. */

#define COMPONENTS (TOKEN_SOFTMAX - TOKEN_CONFIDENCE) /* behind a confidence */

static void put_scores(const float *confidence, const float *components, float *out)
{
    out[0] = *confidence;
    memcpy(out + 1, components, COMPONENTS * sizeof(float));
}

void trace(const REAL *logits, const int64_t *firsts, int64_t rows, int64_t window, int64_t columns,
           const int64_t *emitted, const int64_t *counts, const int64_t *accepted, const int64_t *lengths, const float *confidence,
           const float *components, const float *tau, const float *logprob, const int64_t *numbers, int64_t number_stride,
           const int64_t *sources, int64_t row_step, int64_t place_step, const float *plain_token, float *tokens,
           int64_t token_stride, float *iterations, int64_t iteration_stride, float *gap_sum, int64_t sum_stride)
{
    const int64_t drafted = window - 1;
    #pragma omp parallel for if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *number = numbers + row * number_stride, count = counts[row], length = lengths[row];
        const float *mine = confidence + row * drafted, *why = components + row * drafted * COMPONENTS;
        int64_t kept = accepted[row] < count ? accepted[row] : count;
        if (iterations && drafted && count) {
            float *out = iterations + row * iteration_stride + ITERATION_WIDTH * (number[ROW_ITERATIONS] - 1);
            out[ITERATION_DRAFT_LENGTH] = length, out[ITERATION_ACCEPTED] = kept;
            if (kept < length && kept < count) { /* else the scores are what they are without a rejection */
                put_scores(mine + kept, why + kept * COMPONENTS, out + ITERATION_REJECTED_CONFIDENCE);
                out[ITERATION_REJECTED_SOURCE] = sources ? sources[row * row_step + kept * place_step] : FROM_DRAFT;
            }
        }
        for (int64_t t = 0; t < count && (tokens || gap_sum); t++) {
            const REAL *z = logits + (firsts[row] + t) * columns;
            REAL top = most(z, columns, z[0]), gap = top - z[emitted[row * window + t]], mass = 0;
            if (gap_sum) gap_sum[row * sum_stride] += gap;
            if (!tokens) continue;
            float *out = tokens + row * token_stride + TOKEN_WIDTH * (number[ROW_LENGTH] - number[ROW_PROMPT_LENGTH] + t);
            for (int64_t i = 0; i < columns; i++) mass += EXP(z[i] - top < NOTHING ? NOTHING : z[i] - top);
            memcpy(out, plain_token, TOKEN_WIDTH * sizeof(float));
            if (t < accepted[row]) {
                out[TOKEN_SOURCE] = sources ? sources[row * row_step + t * place_step] : FROM_DRAFT;
                put_scores(mine + t, why + t * COMPONENTS, out + TOKEN_CONFIDENCE);
                out[TOKEN_DRAFT_POSITION] = t + 1;
                if (logprob) out[TOKEN_DRAFTER_LOGPROB] = logprob[row * drafted + t];
            }
            if (t < length) out[TOKEN_TAU] = tau[row * drafted + t];
            out[TOKEN_GAP_NATS] = gap, out[TOKEN_VERIFIER_LOGPROB] = -gap - LOG(mass);
        }
    }
}

