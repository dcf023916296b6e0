/* ------------------------------------------------------------------ texts

   A text that a row is thought to repeat and the place of the row in it, and copies of the row's own text. As
   cmasd/drafters/rejoin.py and texts.py, which say why, number by number; here a text is gone over from end to end, for
   which a processor takes less time than for a list of places. */

#define EDGE -1 /* before a text, and between a source and what follows it */
#define MOST_PLACES 256
#define REACH 5
#define LONGEST 8
#define LOST 4
#define HABIT_FADE 0.98
#define OF_ALL 2.0
#define MOST_TOLD_APART 100000

enum { GUESSED = 0, FRESH = LONGEST + 1 };
enum { ADDED, REPLACED, WORD, WAYS };

struct text {
    int32_t *tokens; /* the first is an edge */
    int64_t length, room;
};

/* What new tokens usually are, over all rows. */
struct habits {
    double usual[LOST + 1][WAYS], (*of_token)[WAYS]; /* zeros: nothing is known */
    int64_t vocabulary, told_apart;
    const uint8_t *inside; /* by token: whether it goes on with a word; null: none does */
};

struct old {
    struct text text;
    struct habits *habits; /* null: there is no such text */
    int64_t at, agreed, left_at, fresh, begun; /* `fresh` new tokens, until a place is found */
    int32_t first; /* of them */
};

/* Whether there is memory for so many tokens in all. */
static int holds(struct text *text, int64_t length)
{
    if (length <= text->room) return 1;
    int32_t *tokens = realloc(text->tokens, (length + length / 2) * sizeof(int32_t));
    if (!tokens) return 0;
    text->tokens = tokens, text->room = length + length / 2;
    return 1;
}

static int64_t least(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

static int64_t overlap(const int32_t *text, int64_t end, const int32_t *tail, int64_t last, int64_t most)
{
    int64_t count = 0;
    while (count < most && text[end - count] == tail[last - count]) count++;
    return count;
}

static int64_t count_of(const int32_t *tokens, int64_t length, int32_t token)
{
    int64_t count = 0;
    for (int64_t i = 0; i < length; i++) count += tokens[i] == token;
    return count;
}

/* Of so many places of a token, in rising order, whether this one is looked at. */
static int is_looked_at(int64_t number, int64_t count)
{
    return count <= MOST_PLACES || number < MOST_PLACES / 4 || number >= count - 3 * MOST_PLACES / 4;
}

/* ---------------------------------------------------------------- an old text */

/* Of a token, or behind them all of one that is none of the vocabulary. */
static int64_t index_of(const struct habits *habits, int32_t token)
{
    return token >= 0 && token < habits->vocabulary ? token : habits->vocabulary;
}

static void weigh(const struct habits *habits, int64_t count, int32_t token, double *weights)
{
    const double *usual = habits->usual[least(count, LOST)], scale = OF_ALL / (usual[ADDED] + usual[REPLACED] + usual[WORD]);
    const double *own = habits->of_token[index_of(habits, token)];
    for (int way = 0; way < WAYS; way++) weights[way] = scale * usual[way] + own[way];
}

static int is_known(const double *seen)
{
    return seen[ADDED] || seen[REPLACED] || seen[WORD];
}

/* New tokens were each of those ways that is marked. */
static void saw(struct habits *habits, int64_t count, int32_t token, const int *was)
{
    if (habits->told_apart >= MOST_TOLD_APART) {
        memset(habits->of_token, 0, (habits->vocabulary + 1) * sizeof *habits->of_token);
        habits->told_apart = 0;
    }
    double *usual = habits->usual[least(count, LOST)], *own = habits->of_token[index_of(habits, token)];
    habits->told_apart += !is_known(own);
    for (int way = 0; way < WAYS; way++) {
        usual[way] = HABIT_FADE * usual[way] + was[way];
        own[way] = HABIT_FADE * own[way] + was[way];
    }
}

/* Where each of the ways would go on; -1 where there is none. */
static void places_of(const struct old *old, int64_t *places)
{
    const struct text *text = &old->text;
    places[ADDED] = old->left_at, places[REPLACED] = least(old->left_at + old->fresh, text->length), places[WORD] = -1;
    for (int64_t at = old->left_at + 1; at < least(old->left_at + REACH + 1, text->length) && places[WORD] < 0; at++)
        if (!old->habits->inside || !old->habits->inside[index_of(old->habits, text->tokens[at])]) places[WORD] = at;
}

/* Where to go on behind new tokens: of as likely places the first. */
static int64_t likeliest(const struct old *old)
{
    int64_t places[WAYS], best = -1;
    double weights[WAYS], most = 0;
    places_of(old, places);
    weigh(old->habits, old->fresh, old->first, weights);
    for (int way = 0; way < WAYS; way++) {
        double likely = 0;
        for (int other = 0; other < WAYS; other++) likely += places[other] == places[way] ? weights[other] : 0;
        if (places[way] >= 0 && likely > most) most = likely, best = places[way];
    }
    return best < 0 ? places[ADDED] : best;
}

static void found_at(struct old *old, int64_t there, int64_t agreed)
{
    if (old->fresh) {
        int64_t places[WAYS];
        places_of(old, places);
        const int was[WAYS] = {places[ADDED] == there, places[REPLACED] == there, places[WORD] == there};
        if (was[ADDED] || was[REPLACED] || was[WORD]) saw(old->habits, old->fresh, old->first, was);
        old->fresh = 0;
    }
    old->at = there + 1, old->agreed = agreed;
}

/* The row has said a token that is not the next one. */
static void join_again(struct old *old, const int32_t *output, int64_t place)
{
    const int32_t *tokens = old->text.tokens, token = output[place];
    const int64_t length = old->text.length, most = least(LONGEST, place + 1), count = count_of(tokens, length, token);
    int64_t best = 0, near = 0, found = 0;
    for (int64_t there = 1, number = 0; number < count; there++) {
        if (tokens[there] != token || !is_looked_at(number++, count)) continue;
        int64_t size = overlap(tokens, there, output, place, most), away = llabs(there - old->at);
        if ((size > 1 || away <= REACH) && (size > best || (size == best && away < near)))
            best = size, near = away, found = there;
    }
    if (best) {
        found_at(old, found, best);
        return;
    }
    if (!old->fresh) old->left_at = old->at, old->first = token;
    old->fresh++, old->agreed = 0, old->at = likeliest(old);
}

/* The row has said `length` tokens, the last `fresh` of them since this was called last. */
static void follow(struct old *old, const int32_t *output, int64_t length, int64_t fresh)
{
    if (!old->habits) return;
    for (int64_t place = length - fresh; place < length; place++) {
        old->begun = 1;
        if (old->at < old->text.length && old->text.tokens[old->at] == output[place]) found_at(old, old->at, old->agreed + 1);
        else join_again(old, output, place);
    }
}

static int64_t kind_of(const struct old *old)
{
    return !old->begun ? FRESH : old->fresh ? GUESSED : least(old->agreed, LONGEST);
}

/* What the old text says next: how many tokens, of `most` at most; none where the place is lost. */
static int64_t rest_of(const struct old *old, int64_t most, const int32_t **tokens)
{
    if (!old->habits || old->fresh >= LOST) return 0;
    const int64_t at = old->fresh ? likeliest(old) : old->at, left = old->text.length - at;
    *tokens = old->text.tokens + at;
    return left < 0 ? 0 : least(left, most);
}

static void forget_old(struct old *old)
{
    free(old->text.tokens);
    memset(old, 0, sizeof *old);
}

/* Another text in its place, of so many tokens, which the caller writes behind the edge; 0 without memory. */
static int renew(struct old *old, struct habits *habits, int64_t count)
{
    struct text text = old->text;
    if (!holds(&text, count + 1)) return 0;
    text.tokens[0] = EDGE, text.length = count + 1;
    *old = (struct old){.text = text, .habits = habits, .at = 1, .left_at = 1};
    return 1;
}

/* ---------------------------------------------------------------- copies */

/* What followed the longest suffix of a row that stands before: how many tokens up to an edge, of `most` at most, and how
   long that suffix is. Its decoder tokens are the last `known`, its output begins at `output_at`. */
static int64_t copied(const struct text *text, int64_t output_at, int64_t known, int64_t most, int64_t longest,
                      int64_t *matched, const int32_t **rest)
{
    const int32_t *tokens = text->tokens, token = tokens[text->length - 1];
    const int64_t last = text->length - 1, count = known ? count_of(tokens, text->length, token) : 0;
    int64_t found = 0, start = 0, size = 0;
    longest = least(longest, known);
    for (int64_t place = last, number = count - 1; number >= 0; place--) {
        if (tokens[place] != token || !is_looked_at(number--, count) || place == last || tokens[place + 1] == EDGE) continue;
        int64_t alike = overlap(tokens, place, tokens, last, longest);
        if (alike > found || (alike == found && start < output_at)) found = alike, start = place + 1;
    }
    *matched = found, *rest = tokens + start;
    while (found && size < most && start + size <= last && tokens[start + size] != EDGE) size++;
    return size;
}
