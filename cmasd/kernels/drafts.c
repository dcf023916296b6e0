/* ------------------------------------------------------------------ drafts, token by token

   Greedy decoding of several tokens, each row as far as a rule lets it: a row that stops costs nothing more, while the
   others go on. */

/* What becomes of the rows' drafts, [row][token] or [row]. */
struct drafted {
    int64_t *tokens;
    REAL *numbers;
    int64_t *made, *sent;
};

static double accepted_share(const struct rule *rule, int64_t j, const REAL *numbers)
{
    REAL confidence = (REAL)rule->bias;
    for (int64_t i = 0; i < 4; i++) confidence += (REAL)rule->weights[i] * numbers[LOGIT_ENTROPY + i];
    if (!rule->offsets) return confidence;
    double known = log_odds(confidence, rule->edge), odds = rule->slope * known + rule->offsets[j];
    if (rule->more[0] != 0) odds += rule->more[0] * (log_odds(numbers[LOGIT_ENTROPY], rule->edge) - known);
    if (rule->more[1] != 0) odds += rule->more[1] * (log_odds(numbers[LOGIT_SOFTMAX], rule->edge) - known);
    return 1 / (1 + exp(-odds));
}

/* `count` tokens at most for each run of the window, behind it, and no more than `room` of its slot; a draft ends with an
   end of sequence. With `ids` the head has only these columns. Returns 0 where there is no memory. */
int64_t guess(const struct decoder *decoder, const struct layer *head, const int64_t *ids, const struct window *window,
              const int64_t *eos, int64_t eos_count, const int64_t *room, int64_t count, const struct rule *rule,
              const struct lines *past, const struct lines *source, const struct drafted *out)
{
    const int64_t width = decoder->width, runs = window->runs, size = size_of(window);
    int64_t *owners = malloc((5 * runs + 1) * sizeof(int64_t));
    int64_t *slots = owners + runs, *places = slots + runs, *best = places + runs, *firsts = best + runs;
    int64_t needed = (size * (width + decoder->room) + runs * (head->out + LOGIT_WIDTH)) * sizeof(REAL) + runs * sizeof(double);
    REAL *hidden = aligned_alloc(VECTOR, (needed + VECTOR - 1) / VECTOR * VECTOR);
    if (owners && hidden) {
        double *statistic = (double *)hidden; /* what rules look at, first for the sake of alignment */
        REAL *states = (REAL *)(statistic + runs), *logits = states + size * width;
        REAL *judged = logits + runs * head->out, *rest = judged + runs * LOGIT_WIDTH;
        struct window here = *window;
        int64_t active = runs;
        for (int64_t run = 0; run < runs; run++) {
            slots[run] = window->slots[run], statistic[run] = rule && rule->is_mean ? 0 : 1;
            out->made[slots[run]] = out->sent[slots[run]] = 0;
            places[run] = window->starts[run] + window->firsts[run + 1] - window->firsts[run];
        }
        for (int64_t j = 0; j < count && active; j++) {
            int64_t still = 0;
            decode(decoder, &here, past, source, rest, states);
            for (int64_t run = 0; run < active; run++)
                memmove(states + run * width, states + (here.firsts[run + 1] - here.firsts[0] - 1) * width,
                        width * sizeof(REAL));
            product(head, states, width, active, 0, logits);
            statistics(logits, active, head->out, best, judged);
            for (int64_t run = 0; run < active; run++) {
                const int64_t slot = slots[run], token = ids ? ids[best[run]] : best[run], at = slot * count + j;
                int64_t goes_on = j + 1 < room[slot] && !is_one_of(token, eos, eos_count);
                double now = statistic[run];
                out->tokens[at] = token, out->made[slot]++;
                memcpy(out->numbers + at * LOGIT_WIDTH, judged + run * LOGIT_WIDTH, LOGIT_WIDTH * sizeof(REAL));
                if (rule) {
                    double share = accepted_share(rule, j, judged + run * LOGIT_WIDTH);
                    now = rule->is_mean ? (now * j + share) / (j + 1) : now * share;
                    if (out->sent[slot] == j && now >= rule->keep[j]) out->sent[slot]++;
                    else goes_on = 0; /* what lies behind a token that is not sent is not sent either */
                    goes_on &= now >= rule->go_on[j];
                } else out->sent[slot]++;
                if (!goes_on) continue;
                best[still] = token, slots[still] = slot, places[still] = places[run], statistic[still++] = now;
            }
            active = still;
            for (int64_t run = 0; run <= active; run++) firsts[run] = run;
            here = (struct window){best, slots, places, firsts, active};
            if (j + 1 < count && active) {
                memcpy(owners, places, active * sizeof(int64_t)); /* where these tokens are */
                here.starts = owners;
                for (int64_t run = 0; run < active; run++) places[run]++;
            }
        }
    }
    int64_t is_done = owners && hidden;
    free(owners), free(hidden);
    return is_done;
}

/* The tokens that a cache lacks of rows with room, run after run, from `held` on, or the latest again where it lacks none;
   it holds them all afterwards. `tokens` is null to count them. Returns how many there are. */
static int64_t lacking(const int64_t *row_tokens, int64_t token_stride, const int64_t *row_lengths,
                       int64_t length_stride, int64_t *held, int64_t rows, const int64_t *room, int64_t *slots,
                       int64_t *starts, int64_t *firsts, int64_t *runs, int64_t *tokens)
{
    int64_t size = 0;
    *runs = 0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = row_lengths[row * length_stride], start = held[row] < length ? held[row] : length - 1;
        if (room && room[row] <= 0) continue;
        if (tokens) {
            memcpy(tokens + size, row_tokens + row * token_stride + start, (length - start) * sizeof(int64_t));
            slots[*runs] = row, starts[*runs] = start, firsts[*runs] = size, firsts[*runs + 1] = size + length - start;
            held[row] = length;
        }
        size += length - start, ++*runs;
    }
    return size;
}

/* As `guess`, behind all tokens that the cache lacks of the first `rows` slots. Returns how many of a row at most. */
int64_t catch_up(const struct decoder *decoder, const struct layer *head, const int64_t *ids, const int64_t *row_tokens,
                 int64_t token_stride, const int64_t *row_lengths, int64_t length_stride, int64_t *held, int64_t rows,
                 const int64_t *eos, int64_t eos_count, const int64_t *room, int64_t count, const struct rule *rule,
                 const struct lines *past, const struct lines *source, const struct drafted *out)
{
    int64_t runs, size = lacking(row_tokens, token_stride, row_lengths, length_stride, held, rows, room, 0, 0, 0, &runs, 0);
    int64_t *tokens = malloc((size + 3 * rows + 1) * sizeof(int64_t)), longest = 0;
    if (!tokens) return 0;
    int64_t *slots = tokens + size, *starts = slots + rows, *firsts = starts + rows;
    lacking(row_tokens, token_stride, row_lengths, length_stride, held, rows, room, slots, starts, firsts, &runs, tokens);
    struct window window = {tokens, slots, starts, firsts, runs};
    longest = longest_of(&window);
    if (!guess(decoder, head, ids, &window, eos, eos_count, room, count, rule, past, source, out)) longest = 0;
    free(tokens);
    return longest;
}

/* ------------------------------------------------------------------ drafts of one pass

   As cmasd/models/parallel_network.py: queries over keys and values of places, each made of the hidden state that said its token
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

/* Keys and values of the window's places, and their features. */
static void share_recalling(const struct drafter *drafter, const struct window *window, const struct seen *seen,
                            const struct lines *past, REAL *joined, REAL *pairs, REAL *features)
{
    const struct decoder *decoder = drafter->decoder;
    const int64_t width = decoder->width, count = size_of(window);
    share_embedding(decoder, window, 0, pairs);
    #pragma omp for schedule(static) nowait
    for (int64_t run = 0; run < window->runs; run++)
        for (int64_t n = window->firsts[run]; n < window->firsts[run + 1]; n++) {
            int64_t place = window->starts[run] + n - window->firsts[run];
            plain_norm(seen->first + window->slots[run] * seen->slot + place * width, width, joined + 2 * n * width);
            memcpy(joined + (2 * n + 1) * width, pairs + n * width, width * sizeof(REAL));
        }
    meet();
    share_product(drafter->fuse, joined, 2 * width, count, 0, features);
    for (int64_t b = 0; b < decoder->count; b++) {
        share_product(decoder->blocks[b].recall, features, width, count, 0, pairs);
        share_storing(window, past, b, pairs, 2 * width, decoder->heads, 2 * width / decoder->heads);
    }
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
        memcpy(numbers + at * LOGIT_WIDTH, judged + row * LOGIT_WIDTH, LOGIT_WIDTH * sizeof(REAL));
        if (!drafter->judge) continue;
        REAL sum = drafter->judge[width + rank];
        for (int64_t i = 0; i < width; i++) sum += drafter->judge[i] * states[at * width + i];
        for (int64_t i = 0; i < rank; i++) sum += drafter->judge[width + i] * steps[row * rank + i];
        predicted[at] = 1 / (1 + EXP(-sum));
    }
}

/* `count` tokens for each row with their `LogitNumbers` and predicted acceptance, [row][token]. The cache lacks the places from
   `held` on, and holds them afterwards. Returns how many of a row at most, or 0 where there is no memory. */
int64_t propose(const struct drafter *drafter, const int64_t *row_tokens, int64_t token_stride,
                const int64_t *row_lengths, int64_t length_stride, int64_t *held, int64_t rows, int64_t count,
                const struct seen *seen, const struct lines *past, const struct lines *source, int64_t *found,
                REAL *numbers, REAL *predicted)
{
    const struct decoder *decoder = drafter->decoder;
    const int64_t width = decoder->width, all = rows * count, columns = drafter->head->out, rank = drafter->rank;
    int64_t runs, longest = 0;
    const int64_t size =
        lacking(row_tokens, token_stride, row_lengths, length_stride, held, rows, 0, 0, 0, 0, &runs, 0);
    int64_t needed = size * 5 * width + all * (decoder->room + columns + rank) + rows * (columns + rank + LOGIT_WIDTH);
    int64_t *tokens = malloc((size + 6 * rows + 2) * sizeof(int64_t));
    REAL *joined = aligned_alloc(VECTOR, (needed * sizeof(REAL) + VECTOR - 1) / VECTOR * VECTOR);
    if (tokens && joined) {
        int64_t *slots = tokens + size, *starts = slots + rows, *firsts = starts + rows, *asked = firsts + rows + 1;
        int64_t *lengths = asked + rows + 1, *latest = lengths + rows;
        lacking(row_tokens, token_stride, row_lengths, length_stride, held, rows, 0, slots, starts, firsts, &runs, tokens);
        const struct window lacked = {tokens, slots, starts, firsts, runs}, queries = {0, slots, starts, asked, rows};
        longest = longest_of(&lacked);
        for (int64_t row = 0; row < rows; row++) {
            lengths[row] = row_lengths[row * length_stride];
            latest[row] = tokens[firsts[row + 1] - 1], asked[row + 1] = (row + 1) * count;
        }
        asked[0] = 0;
        REAL *pairs = joined + 2 * size * width, *features = pairs + 2 * size * width;
        REAL *room = features + size * width, *base = room + all * decoder->room, *context = base + all * columns;
        REAL *steps = context + all * rank, *logits = steps + rows * rank, *judged = logits + rows * columns, *states;
        struct lines here = *past;
        here.counts = lengths;
        struct meeting meeting = {0};
        #pragma omp parallel
        {
            team = &meeting;
            share_recalling(drafter, &lacked, seen, past, joined, pairs, features);
            #pragma omp for schedule(static) nowait
            for (int64_t query = 0; query < all; query++)
                for (int64_t i = 0; i < width; i++)
                    room[query * width + i] = features[(firsts[query / count + 1] - 1) * width + i] +
                                              drafter->queries[query % count * width + i];
            meet();
            REAL *mine = share_layers(decoder, &queries, STORED, &here, source, room);
            share_product(drafter->head, mine, width, all, 0, base);
            if (rank) share_product(drafter->context, mine, width, all, 0, context);
            #pragma omp single
            states = mine;
        }
        for (int64_t j = 0; j < count; j++)
            say(drafter, rows, j, count, states, base, context, steps, logits, judged, latest, found, numbers, predicted);
    }
    free(tokens), free(joined);
    return longest;
}

/* The hidden states of a window, which said the tokens behind each of its own. */
void remember(const REAL *hidden, const struct window *window, int64_t width, const struct seen *seen)
{
    for (int64_t run = 0; run < window->runs; run++)
        memcpy(seen->first + window->slots[run] * seen->slot + (window->starts[run] + 1) * width,
               hidden + (window->firsts[run] - window->firsts[0]) * width,
               (window->firsts[run + 1] - window->firsts[run]) * width * sizeof(REAL));
}
