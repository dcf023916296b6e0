/* ------------------------------------------------------------------ proposals

   Ways for a row to go on, what is thought of them, and which of them goes in; as cmasd/drafters/proposals.py, which says
   why, and by_row.py. */

#define KINDS 32
#define ALIKE 12
#define RATE_FADE 0.99
#define MOST_WEIGHT 1e9
#define ENOUGH 0.9

enum { OF_PREVIOUS, OF_ALIKE, OF_MEMORY, OF_OWN, OF_REJECTED, WAYS_ON };

struct proposal {
    int32_t *tokens;
    double *confidence;
    int64_t count, source, kind, sent;
};

struct row {
    struct text text; /* its source where it copies from that, an edge, its decoder tokens */
    int64_t first, known, output_at; /* where these begin, how many there are, where its output begins among them */
    int32_t *source; /* for the memory */
    int64_t source_length, has_previous, is_looked_up;
    struct old previous, repeated, rejected;
};

/* Accepted and judged, weighted: first tokens of drafts, and those behind them. */
struct rate {
    double firsts, first_judged, laters, later_judged;
};

struct lookups {
    int64_t vocabulary, max_ngram, copies, copies_source, slots;
    struct row **rows;
    struct memory *memory;
    struct habits habits, habits_of_drafts;
    uint8_t *inside;
    struct rate rates[SOURCES][KINDS];
    double weight; /* of evidence of this iteration */
    struct proposal *sent, other; /* by row, of the latest drafts; and one to set beside them */
    int64_t sent_rows, sent_room, most;
};

/* ---------------------------------------------------------------- how often tokens were accepted */

static void share_accepted(const struct lookups *all, int64_t source, int64_t kind, double *first, double *later)
{
    const int is_guessed = source == FROM_PREVIOUS && kind == GUESSED;
    const double accepted = source != FROM_PREVIOUS ? 4.0 : 9.5, judged = source != FROM_PREVIOUS ? 5.0 : 10.0;
    const struct rate *rate = &all->rates[source][kind];
    const double weight = all->weight, accepted_first = is_guessed ? 1.5 : accepted, judged_first = is_guessed ? 4.0 : judged;
    *first = (rate->firsts + weight * accepted_first) / (rate->first_judged + weight * judged_first);
    *later = (rate->laters + weight * accepted) / (rate->later_judged + weight * judged);
}

static void fade(struct lookups *all)
{
    all->weight /= RATE_FADE;
    if (all->weight <= MOST_WEIGHT) return;
    double *numbers = (double *)all->rates;
    for (size_t i = 0; i < sizeof all->rates / sizeof(double); i++) numbers[i] /= all->weight;
    all->weight = 1.0;
}

void lookups_count(struct lookups *all, int64_t source, int64_t kind, int64_t sent, int64_t accepted)
{
    struct rate *rate = &all->rates[source][kind];
    const int64_t judged = least(accepted + 1, sent);
    rate->firsts += all->weight * least(accepted, 1);
    rate->first_judged += all->weight * least(judged, 1);
    rate->laters += all->weight * (accepted > 1 ? accepted - 1 : 0);
    rate->later_judged += all->weight * (judged > 1 ? judged - 1 : 0);
}

/* ---------------------------------------------------------------- how it may go on */

static void propose_old(const struct lookups *all, const struct old *old, int64_t source, int64_t room, struct proposal *into)
{
    const int32_t *tokens = 0;
    double first, later;
    into->count = rest_of(old, room, &tokens);
    if (!into->count) return;
    into->source = source, into->kind = kind_of(old);
    share_accepted(all, source, into->kind, &first, &later);
    memcpy(into->tokens, tokens, into->count * sizeof *tokens);
    for (int64_t i = 0; i < into->count; i++) into->confidence[i] = i ? later : first;
}

static void propose_memory(const struct lookups *all, const struct row *row, int64_t room, struct proposal *into)
{
    int64_t matched = 0;
    double first, later;
    into->count = 0;
    if (!all->memory) return;
    const int32_t *output = row->text.tokens + row->first + row->output_at;
    into->count = recall(all->memory, output, row->known - row->output_at, room, into->tokens, into->confidence, &matched);
    into->source = FROM_MEMORY, into->kind = ALIKE + least(matched, KINDS - ALIKE - 1);
    share_accepted(all, FROM_MEMORY, into->kind, &first, &later);
    for (int64_t i = 0; i < into->count; i++) into->confidence[i] *= i ? later : first;
}

static void propose_copy(const struct lookups *all, const struct row *row, int64_t room, struct proposal *into)
{
    const int32_t *tokens = 0;
    int64_t matched = 0, count = 0;
    double first, later;
    into->count = 0;
    if (!all->copies) return;
    count = copied(&row->text, row->first + row->output_at, row->known, room, all->max_ngram, &matched, &tokens);
    into->source = FROM_COPY, into->kind = ALIKE + least(matched, KINDS - ALIKE - 1);
    share_accepted(all, FROM_COPY, into->kind, &first, &later);
    for (; into->count < count && tokens[into->count] >= 0 && tokens[into->count] < all->vocabulary; into->count++) {
        into->tokens[into->count] = tokens[into->count];
        into->confidence[into->count] = into->count ? later : first;
    }
}

static void propose(const struct lookups *all, const struct row *row, int way, int64_t room, struct proposal *into)
{
    if (way == OF_PREVIOUS) propose_old(all, &row->previous, FROM_PREVIOUS, room, into);
    else if (way == OF_ALIKE) propose_old(all, &row->repeated, FROM_MEMORY, room, into);
    else if (way == OF_REJECTED) propose_old(all, &row->rejected, FROM_DRAFT, room, into);
    else if (way == OF_MEMORY) propose_memory(all, row, room, into);
    else propose_copy(all, row, room, into);
}

/* Tokens that will be accepted: the sum of what survives to each. */
static double expected_of(const struct proposal *proposal)
{
    double survival = 1, sum = 0;
    for (int64_t i = 0; i < proposal->count; i++) sum += survival *= proposal->confidence[i];
    return sum;
}

static void choose(struct lookups *all, const struct row *row, int64_t room, struct proposal *best)
{
    double most = 0;
    best->count = best->kind = 0, best->source = FROM_COPY;
    for (int way = 0; way < WAYS_ON && room && most < ENOUGH * room; way++) {
        propose(all, row, way, room, &all->other);
        const double expected = expected_of(&all->other);
        if (expected <= most) continue;
        const struct proposal other = *best;
        *best = all->other, all->other = other, most = expected;
    }
}

/* How much of a draft goes to the verifier; as `Rule.lengths`, which is given numbers of four bytes. */
static int64_t sent_of(const struct rule *rule, const double *confidence, int64_t made)
{
    double statistic = rule->is_mean ? 0 : 1, sum = 0;
    for (int64_t j = 0; j < made; j++) {
        const double before = statistic, known = (float)confidence[j];
        const double share = rule->offsets
                                 ? 1 / (1 + exp(-(rule->slope * log_odds(known, rule->edge) + rule->offsets[j])))
                                 : known;
        sum += share, statistic = rule->is_mean ? sum / (j + 1) : before * share;
        if ((j && before < rule->go_on[j - 1]) || statistic < rule->keep[j]) return j;
    }
    return made;
}
