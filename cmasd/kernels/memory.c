/* ------------------------------------------------------------------ memory

   What rows said before, as cmasd/drafters/memory.py, which says why, number by number: a ring of tokens with chains of
   places, and sources by their trigrams. Chains of sources are never cut: a row that is forgotten ends them. */

#define LEVELS 2
#define RECALLED 16 /* places of a chain, that are looked at; MOST_PLACES there */
#define LEAST_HEADS 12
#define LEAST_ALIKE 0.4
#define SKETCH 8
#define COMMON_PLACES (1 << 16)
#define COMMON_SHARE 0.25
#define MOST_ALIKE 4

static const int64_t levels[LEVELS] = {4, 2};

struct remembered {
    uint64_t *trigrams, sketch[SKETCH]; /* of the source, sorted; and those by which it is found */
    int64_t count, sketched, start, stop; /* of trigrams, of the sketch; its output */
    int64_t before[SKETCH]; /* mark of the row before that is found by the same trigram */
};

/* By a trigram the latest row that is found by it: SKETCH times its number and the place in its sketch, and 1; 0: none. */
struct mark {
    uint64_t trigram;
    int64_t latest;
};

struct memory {
    int64_t most, longest, written, mask, last_mask; /* of keys that are told apart, now and at last */
    int32_t *ring;
    int64_t *links[LEVELS], *heads[LEVELS];
    struct remembered *rows;
    int64_t first_row, next_row, row_room; /* of the rows, a power of two */
    struct mark *marks;
    int64_t marked, mark_room; /* likewise */
    int64_t widest; /* most trigrams of a row so far */
    int32_t having[COMMON_PLACES];
};

static void free_memory(struct memory *memory)
{
    if (!memory) return;
    for (int64_t row = memory->first_row; row < memory->next_row; row++)
        free(memory->rows[row & (memory->row_room - 1)].trigrams);
    for (int level = 0; level < LEVELS; level++) free(memory->links[level]), free(memory->heads[level]);
    free(memory->ring), free(memory->rows), free(memory->marks), free(memory);
}

/* Pages that are never written to take no memory. */
static struct memory *new_memory(int64_t most, int64_t longest)
{
    struct memory *memory = calloc(1, sizeof *memory);
    if (!memory) return 0;
    int64_t places = 1 << LEAST_HEADS, is_whole = 1;
    while (places <= most) places *= 2;
    memory->most = most, memory->longest = longest < levels[0] ? levels[0] : longest, memory->last_mask = places - 1;
    memory->mask = (1 << LEAST_HEADS) - 1;
    memory->row_room = memory->mark_room = 1 << LEAST_HEADS;
    is_whole &= (memory->ring = calloc(most, sizeof *memory->ring)) != 0;
    is_whole &= (memory->rows = calloc(memory->row_room, sizeof *memory->rows)) != 0;
    is_whole &= (memory->marks = calloc(memory->mark_room, sizeof *memory->marks)) != 0;
    for (int level = 0; level < LEVELS; level++) {
        is_whole &= (memory->links[level] = calloc(most, sizeof **memory->links)) != 0;
        is_whole &= (memory->heads[level] = calloc(places, sizeof **memory->heads)) != 0;
    }
    if (is_whole) return memory;
    free_memory(memory);
    return 0;
}

/* ---------------------------------------------------------------- by the latest words */

static int64_t key_of(const struct memory *memory, const int32_t *tokens, int64_t count)
{
    uint64_t key = 0;
    for (int64_t i = 0; i < count; i++) key = (key + (uint64_t)(int64_t)tokens[i] + 1) * 0x9E3779B97F4A7C15u;
    return (int64_t)(key >> 32) & memory->mask;
}

static int32_t token_at(const struct memory *memory, int64_t place)
{
    return place <= memory->written ? memory->ring[place % memory->most] : EDGE;
}

/* What most of the places are followed by, step by step. */
static int64_t vote(const struct memory *memory, int64_t *places, int64_t count, int64_t most, int32_t *tokens, double *shares)
{
    int64_t step = 0;
    for (; step < most; step++) {
        int32_t said[RECALLED], token = EDGE;
        int64_t best = 0, kept = 0;
        for (int64_t i = 0; i < count; i++) said[i] = token_at(memory, places[i] + step + 1);
        for (int64_t i = 0; i < count; i++) {
            int64_t votes = 0;
            for (int64_t j = 0; j < count; j++) votes += said[j] == said[i];
            if (votes > best) best = votes, token = said[i];
        }
        if (token == EDGE) break;
        tokens[step] = token, shares[step] = (double)best / count;
        for (int64_t i = 0; i < count; i++)
            if (said[i] == token) places[kept++] = places[i];
        count = kept;
    }
    return step;
}

static int64_t overlap_at(const struct memory *memory, int64_t place, const int32_t *tail, int64_t length)
{
    int64_t count = 0, most = least(least(memory->longest, length), place + memory->most - memory->written);
    while (count < most && memory->ring[(place - count) % memory->most] == tail[length - 1 - count]) count++;
    return count;
}

/* What followed the longest suffix of a text: how many tokens, and how many agree before. */
static int64_t recall(const struct memory *memory, const int32_t *tail, int64_t length, int64_t most, int32_t *tokens,
                      double *shares, int64_t *matched)
{
    for (int level = 0; level < LEVELS; level++) {
        if (length < levels[level]) continue;
        int64_t places[RECALLED], count = 0, best = levels[level];
        int64_t place = memory->heads[level][key_of(memory, tail + length - best, best)];
        for (int i = 0; i < RECALLED && place > 0 && place > memory->written - memory->most; i++) {
            int64_t size = token_at(memory, place + 1) != EDGE ? overlap_at(memory, place, tail, length) : 0;
            if (size > best) best = size, count = 0;
            if (size == best) places[count++] = place;
            place = memory->links[level][place % memory->most];
        }
        *matched = best;
        if (count) return vote(memory, places, count, most, tokens, shares);
    }
    return 0;
}

/* ---------------------------------------------------------------- by the source */

static uint64_t mixed(uint64_t value)
{
    value = (value ^ value >> 31) * 0xBF58476D1CE4E5B9u;
    return value ^ value >> 29;
}

static int by_size(const void *one, const void *other)
{
    const uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* Sorted, each once, into room for `length`; gives how many. */
static int64_t trigrams_of(const int32_t *source, int64_t length, uint64_t *trigrams)
{
    int64_t count = 0;
    for (int64_t i = 0; i < length; i++) {
        const uint64_t before = (uint64_t)(int64_t)(i ? source[i - 1] : EDGE), here = (uint64_t)(int64_t)source[i];
        const uint64_t behind = (uint64_t)(int64_t)(i + 1 < length ? source[i + 1] : EDGE);
        trigrams[i] = mixed(behind + mixed(here + mixed(before)));
    }
    qsort(trigrams, length, sizeof *trigrams, by_size);
    for (int64_t i = 0; i < length; i++)
        if (!count || trigrams[i] != trigrams[count - 1]) trigrams[count++] = trigrams[i];
    return count;
}

/* Those that few rows have, into room for all; or all. Gives how many. */
static int64_t telling(const struct memory *memory, const uint64_t *trigrams, int64_t count, uint64_t *few)
{
    const double share = COMMON_SHARE * (memory->next_row - memory->first_row), most = share > RECALLED ? share : RECALLED;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (memory->having[trigrams[i] & (COMMON_PLACES - 1)] <= most) few[kept++] = trigrams[i];
    if (kept) return kept;
    memcpy(few, trigrams, count * sizeof *few);
    return count;
}

static struct mark *mark_of(struct mark *marks, int64_t room, uint64_t trigram)
{
    int64_t at = trigram & (room - 1);
    while (marks[at].latest && marks[at].trigram != trigram) at = (at + 1) & (room - 1);
    return marks + at;
}

static struct remembered *row_of(const struct memory *memory, int64_t number)
{
    return memory->rows + (number & (memory->row_room - 1));
}

/* Numbers of rows that are found by a trigram, of the latest RECALLED, in rising order. */
static int64_t found_by(const struct memory *memory, uint64_t trigram, int64_t *rows)
{
    int64_t count = 0, latest = mark_of(memory->marks, memory->mark_room, trigram)->latest;
    while (latest && (latest - 1) / SKETCH >= memory->first_row && count < RECALLED) {
        rows[count++] = (latest - 1) / SKETCH;
        latest = row_of(memory, rows[count - 1])->before[(latest - 1) % SKETCH];
    }
    for (int64_t i = 0; i < count / 2; i++) {
        const int64_t row = rows[i];
        rows[i] = rows[count - 1 - i], rows[count - 1 - i] = row;
    }
    return count;
}

static int64_t in_both(const uint64_t *one, int64_t count, const uint64_t *other, int64_t others)
{
    int64_t both = 0;
    for (int64_t i = 0, j = 0; i < count && j < others;) {
        both += one[i] == other[j];
        if (one[i] < other[j]) i++;
        else if (one[i] > other[j]) j++;
        else i++, j++;
    }
    return both;
}

/* The row whose source is most like this one, into `found`, null where none is; 0 without memory. */
static int alike(const struct memory *memory, const int32_t *source, int64_t length, const struct remembered **found)
{
    int64_t rows[SKETCH * RECALLED], times[SKETCH * RECALLED], candidates = 0;
    uint64_t *whole = malloc((2 * length + memory->widest + 1) * sizeof *whole), *few = whole + length, *theirs = few + length;
    *found = 0;
    if (!whole) return 0;
    const int64_t all = trigrams_of(source, length, whole), count = telling(memory, whole, all, few);
    for (int64_t i = 0; i < count && i < SKETCH; i++) {
        int64_t by[RECALLED], here = found_by(memory, few[i], by);
        for (int64_t j = 0; j < here; j++) {
            int64_t at = 0;
            while (at < candidates && rows[at] != by[j]) at++;
            if (at == candidates) rows[candidates] = by[j], times[candidates++] = 0;
            times[at]++;
        }
    }
    double best = LEAST_ALIKE;
    for (int64_t tried = 0; tried < MOST_ALIKE && tried < candidates; tried++) {
        int64_t at = 0;
        for (int64_t i = 1; i < candidates; i++)
            if (times[i] > times[at]) at = i;
        times[at] = 0;
        const struct remembered *row = row_of(memory, rows[at]);
        const int64_t others = count == all ? row->count : telling(memory, row->trigrams, row->count, theirs);
        const int64_t both = in_both(few, count, count == all ? row->trigrams : theirs, others);
        const double likeness = (double)both / (count + others - both);
        if (likeness >= best) best = likeness, *found = row;
    }
    free(whole);
    return 1;
}

/* ---------------------------------------------------------------- learning */

/* The `said`th token of its text is at a place; `tokens` ends with it. */
static void chain(struct memory *memory, int64_t place, const int32_t *tokens, int64_t said)
{
    for (int level = 0; level < LEVELS && place > 0; level++) {
        if (said < levels[level]) continue;
        int64_t *head = memory->heads[level] + key_of(memory, tokens - levels[level] + 1, levels[level]);
        memory->links[level][place % memory->most] = *head, *head = place;
    }
}

/* Tells more keys apart, before the ring is full: as many as are needed, so that few pages are touched by few tokens. */
static void tell_apart(struct memory *memory, int64_t tokens)
{
    if (memory->mask >= memory->last_mask || tokens <= memory->mask) return;
    while (memory->mask < memory->last_mask && tokens > memory->mask) memory->mask = 2 * memory->mask + 1;
    for (int level = 0; level < LEVELS; level++) memset(memory->heads[level], 0, (memory->mask + 1) * sizeof(int64_t));
    for (int64_t place = 1, said = 0; place <= memory->written; place++) {
        said = memory->ring[place] == EDGE ? 0 : said + 1;
        chain(memory, place, memory->ring + place, said);
    }
}

static void say(struct memory *memory, const int32_t *tokens, int64_t count)
{
    tell_apart(memory, memory->written + count);
    memory->ring[++memory->written % memory->most] = EDGE;
    for (int64_t i = 0; i < count; i++) {
        memory->ring[++memory->written % memory->most] = tokens[i];
        chain(memory, memory->written, tokens + i, i + 1);
    }
}

static void forget_first(struct memory *memory)
{
    struct remembered *row = row_of(memory, memory->first_row++);
    for (int64_t i = 0; i < row->count; i++) memory->having[row->trigrams[i] & (COMMON_PLACES - 1)]--;
    free(row->trigrams);
}

/* Twice the rows; 0 without memory. */
static int more_rows(struct memory *memory)
{
    struct remembered *rows = calloc(2 * memory->row_room, sizeof *rows);
    if (!rows) return 0;
    for (int64_t row = memory->first_row; row < memory->next_row; row++)
        rows[row & (2 * memory->row_room - 1)] = *row_of(memory, row);
    free(memory->rows);
    memory->rows = rows, memory->row_room *= 2;
    return 1;
}

/* Marks of rows that are there alone, in room for twice as many. */
static int fewer_marks(struct memory *memory)
{
    int64_t kept = 0, room = 1 << LEAST_HEADS;
    for (int64_t i = 0; i < memory->mark_room; i++)
        kept += memory->marks[i].latest > memory->first_row * SKETCH;
    while (room < 4 * (kept + SKETCH)) room *= 2;
    struct mark *marks = calloc(room, sizeof *marks);
    if (!marks) return 0;
    for (int64_t i = 0; i < memory->mark_room; i++)
        if (memory->marks[i].latest > memory->first_row * SKETCH)
            *mark_of(marks, room, memory->marks[i].trigram) = memory->marks[i];
    free(memory->marks);
    memory->marks = marks, memory->mark_room = room, memory->marked = kept;
    return 1;
}

/* A row is done; 0 without memory. */
static int learn(struct memory *memory, const int32_t *source, int64_t length, const int32_t *output, int64_t count)
{
    if (!count || count >= memory->most) return 1;
    uint64_t *room = malloc((2 * length + 1) * sizeof *room);
    if (!room) return 0;
    say(memory, output, count);
    while (memory->first_row < memory->next_row
           && row_of(memory, memory->first_row)->start <= memory->written - memory->most) forget_first(memory);
    struct remembered row = {.trigrams = room, .start = memory->written - count + 1, .stop = memory->written + 1};
    if (memory->next_row - memory->first_row == memory->row_room && !more_rows(memory)) return free(room), 0;
    if (2 * (memory->marked + SKETCH) > memory->mark_room && !fewer_marks(memory)) return free(room), 0;
    row.count = trigrams_of(source, length, room);
    if (row.count > memory->widest) memory->widest = row.count;
    row.sketched = least(telling(memory, room, row.count, room + length), SKETCH);
    for (int64_t i = 0; i < row.sketched; i++) {
        struct mark *mark = mark_of(memory->marks, memory->mark_room, row.sketch[i] = room[length + i]);
        memory->marked += !mark->latest;
        row.before[i] = mark->latest;
        *mark = (struct mark){row.sketch[i], memory->next_row * SKETCH + i + 1};
    }
    for (int64_t i = 0; i < row.count; i++) memory->having[room[i] & (COMMON_PLACES - 1)]++;
    uint64_t *smaller = realloc(room, (row.count + 1) * sizeof *room);
    if (smaller) row.trigrams = smaller;
    *row_of(memory, memory->next_row++) = row;
    return 1;
}
