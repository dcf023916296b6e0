/* Drafts of texts that are known already, for all rows of an iteration in one call; built by build.py, called by
   lookups.py. What cmasd/drafters/by_row.py does row by row, number by number, which says why.

   A translation unit of its own: its sums are compiled to be those of Python, and it knows nothing of models. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "signals.h" /* written by build.py: the places of cmasd/signals.py */
#include "rule.h"
#include "texts.c"
#include "memory.c"
#include "proposals.c"

/* ---------------------------------------------------------------- rows come and go */

void lookups_free(struct lookups *all)
{
    if (!all) return;
    for (int64_t slot = 0; slot < all->slots; slot++) {
        struct row *row = all->rows[slot];
        if (!row) continue;
        forget_old(&row->previous), forget_old(&row->repeated), forget_old(&row->rejected);
        free(row->text.tokens), free(row->source), free(row);
    }
    for (int64_t i = 0; i < all->sent_room; i++) free(all->sent[i].tokens), free(all->sent[i].confidence);
    free_memory(all->memory);
    free(all->other.tokens), free(all->other.confidence), free(all->sent), free(all->rows), free(all->inside);
    free(all->habits.of_token), free(all->habits_of_drafts.of_token), free(all);
}

static int begin_habits(struct habits *habits, int64_t vocabulary, const uint8_t *inside)
{
    for (int count = 0; count <= LOST; count++)
        habits->usual[count][ADDED] = 0.9, habits->usual[count][REPLACED] = 1.0, habits->usual[count][WORD] = 1.1;
    habits->vocabulary = vocabulary, habits->inside = inside;
    return (habits->of_token = calloc(vocabulary + 1, sizeof *habits->of_token)) != 0;
}

/* `memory_tokens` 0: nothing is remembered; `inside` by token. Null without memory. */
struct lookups *lookups_new(int64_t vocabulary, int64_t max_ngram, int64_t memory_tokens, int64_t longest, int64_t copies,
                            int64_t copies_source, const uint8_t *inside)
{
    struct lookups *all = calloc(1, sizeof *all);
    if (!all) return 0;
    all->vocabulary = vocabulary, all->max_ngram = max_ngram, all->weight = 1.0;
    all->copies = copies, all->copies_source = copies_source;
    int is_whole = (all->inside = malloc(vocabulary + 1)) != 0;
    if (is_whole) memcpy(all->inside, inside, vocabulary), all->inside[vocabulary] = 0;
    is_whole = is_whole && begin_habits(&all->habits, vocabulary, all->inside);
    is_whole = is_whole && begin_habits(&all->habits_of_drafts, vocabulary, 0);
    is_whole = is_whole && (!memory_tokens || (all->memory = new_memory(memory_tokens, longest)));
    if (is_whole) return all;
    lookups_free(all);
    return 0;
}

/* Room for the slots up to this one. */
static int has_slot(struct lookups *all, int64_t slot)
{
    if (slot < all->slots) return 1;
    struct row **rows = realloc(all->rows, 2 * (slot + 1) * sizeof *rows);
    if (!rows) return 0;
    memset(rows + all->slots, 0, (2 * (slot + 1) - all->slots) * sizeof *rows);
    all->rows = rows, all->slots = 2 * (slot + 1);
    return 1;
}

static void free_row(struct lookups *all, int64_t slot)
{
    struct row *row = slot < all->slots ? all->rows[slot] : 0;
    if (!row) return;
    forget_old(&row->previous), forget_old(&row->repeated), forget_old(&row->rejected);
    free(row->text.tokens), free(row->source), free(row);
    all->rows[slot] = 0;
}

/* A row, with its source where that is used, and what an earlier run made of it, if anything, as far as the verifier could
   say that; 0 without memory. */
int64_t lookups_enter(struct lookups *all, int64_t slot, const int32_t *source, int64_t length, const int64_t *previous,
                      int64_t before)
{
    struct row *row = calloc(1, sizeof *row);
    if (!row || !has_slot(all, slot)) return free(row), 0;
    free_row(all, slot);
    all->rows[slot] = row;
    const int64_t copied_length = all->copies_source ? length : 0;
    if (!holds(&row->text, copied_length + 2)) return 0;
    row->text.tokens[0] = row->text.tokens[copied_length + 1] = EDGE;
    if (copied_length) memcpy(row->text.tokens + 1, source, copied_length * sizeof *source);
    row->text.length = row->first = copied_length + 2;
    if (all->memory) {
        if (!(row->source = malloc((length + 1) * sizeof *source))) return 0;
        if (length) memcpy(row->source, source, length * sizeof *source);
        row->source_length = length;
    }
    if (!before) return 1;
    int64_t said = 0;
    while (said < before && previous[said] >= 0 && previous[said] < all->vocabulary) said++;
    if (!renew(&row->previous, &all->habits, said)) return 0;
    for (int64_t i = 0; i < said; i++) row->previous.text.tokens[1 + i] = (int32_t)previous[i];
    return row->has_previous = 1;
}

/* 0 without memory, or such a row. */
int64_t lookups_move(struct lookups *all, int64_t source, int64_t target)
{
    if (!has_slot(all, source > target ? source : target)) return 0;
    free_row(all, target);
    all->rows[target] = all->rows[source];
    all->rows[source] = 0;
    return all->rows[target] != 0;
}

int64_t lookups_learn(struct lookups *all, const int32_t *source, int64_t length, const int32_t *output, int64_t count)
{
    return !all->memory || learn(all->memory, source, length, output, count);
}

int64_t lookups_leave(struct lookups *all, int64_t slot, const int32_t *output, int64_t count)
{
    const struct row *row = slot < all->slots ? all->rows[slot] : 0;
    const int64_t is_learned = row && lookups_learn(all, row->source, row->source_length, output, count);
    free_row(all, slot);
    return is_learned;
}

int64_t lookups_forget(struct lookups *all)
{
    if (!all->memory) return 1;
    struct memory *memory = new_memory(all->memory->most, all->memory->longest);
    if (!memory) return 0;
    free_memory(all->memory);
    all->memory = memory;
    return 1;
}

/* ---------------------------------------------------------------- what a row has said */

static int look_up(struct lookups *all, struct row *row)
{
    const struct remembered *found = 0;
    row->is_looked_up = 1;
    if (row->has_previous || !all->memory || !row->source_length) return 1;
    if (!alike(all->memory, row->source, row->source_length, &found)) return 0;
    if (!found) return 1;
    if (!renew(&row->repeated, &all->habits, found->stop - found->start)) return 0;
    for (int64_t place = found->start; place < found->stop; place++)
        row->repeated.text.tokens[1 + place - found->start] = token_at(all->memory, place);
    return 1;
}

/* Decoder tokens of a row, of which the first `prompt` are not its output. */
static int read_row(struct lookups *all, struct row *row, const int64_t *tokens, int64_t length, int64_t prompt)
{
    if (!holds(&row->text, row->first + length)) return 0;
    const int64_t before = row->known;
    for (int64_t i = before; i < length; i++) row->text.tokens[row->first + i] = (int32_t)tokens[i];
    row->text.length = row->first + length, row->known = length;
    if (!row->is_looked_up) row->output_at = least(prompt, length);
    const int32_t *output = row->text.tokens + row->first + row->output_at;
    const int64_t said = length - row->output_at, fresh = row->is_looked_up ? length - before : said;
    if (!row->is_looked_up && !look_up(all, row)) return 0;
    follow(&row->previous, output, said, fresh);
    follow(&row->repeated, output, said, fresh);
    follow(&row->rejected, output, said, fresh);
    return 1;
}

/* ---------------------------------------------------------------- the drafts of an iteration */

static int has_tokens(struct proposal *proposal, int64_t most)
{
    int32_t *tokens = realloc(proposal->tokens, most * sizeof *tokens);
    if (tokens) proposal->tokens = tokens;
    double *confidence = realloc(proposal->confidence, most * sizeof *confidence);
    if (confidence) proposal->confidence = confidence;
    return tokens && confidence;
}

/* Room for drafts of so many rows and tokens. */
static int has_room(struct lookups *all, int64_t rows, int64_t most)
{
    if (rows > all->sent_room) {
        struct proposal *sent = realloc(all->sent, rows * sizeof *sent);
        if (!sent) return 0;
        memset(sent + all->sent_room, 0, (rows - all->sent_room) * sizeof *sent);
        all->sent = sent;
        for (; all->sent_room < rows; all->sent_room++)
            if (!has_tokens(sent + all->sent_room, all->most + 1)) return 0;
    }
    if (most <= all->most && all->other.tokens) return 1;
    int is_whole = has_tokens(&all->other, most + 1);
    for (int64_t row = 0; row < all->sent_room; row++) is_whole &= has_tokens(all->sent + row, most + 1);
    if (is_whole) all->most = most;
    return is_whole;
}

/* What the rows of an iteration are, and what each may draft. */
struct asked {
    const int64_t *tokens, *lengths, *prompts, *rooms;
    int64_t token_stride, length_stride, prompt_stride, rows, most;
};

static int read_rows(struct lookups *all, const struct asked *asked)
{
    fade(all);
    int is_read = has_room(all, asked->rows, asked->most);
    for (int64_t i = 0; i < asked->rows && is_read; i++)
        is_read = i < all->slots && all->rows[i] && read_row(all, all->rows[i], asked->tokens + i * asked->token_stride,
                           asked->lengths[i * asked->length_stride], asked->prompts[i * asked->prompt_stride]);
    return is_read;
}

/* The best draft of each row, side by side and as wide as the most that is sent of one, which is returned; what is sent
   goes by the rule, if there is one. -1 without memory. */
int64_t lookups_draft(struct lookups *all, const struct asked *asked, const struct rule *rule, int64_t *tokens,
                      float *confidence, int64_t *sent, int64_t *made, int64_t *sources)
{
    int64_t longest = 0;
    if (!read_rows(all, asked)) return -1;
    for (int64_t i = 0; i < asked->rows; i++) {
        struct proposal *best = all->sent + i;
        choose(all, all->rows[i], least(asked->rooms[i], asked->most), best);
        made[i] = best->count, sources[i] = best->source;
        sent[i] = best->sent = rule ? sent_of(rule, best->confidence, best->count) : best->count;
        if (best->sent > longest) longest = best->sent;
    }
    for (int64_t i = 0; i < asked->rows; i++) {
        const struct proposal *best = all->sent + i;
        for (int64_t j = 0; j < longest; j++) {
            tokens[i * longest + j] = j < best->count ? best->tokens[j] : 0;
            confidence[i * longest + j] = j < best->count ? (float)best->confidence[j] : 0;
        }
    }
    all->sent_rows = asked->rows;
    return longest;
}

/* All but rejected ones, [row][way][token]; 0 without memory. */
int64_t lookups_all(struct lookups *all, const struct asked *asked, int32_t *tokens, double *confidence, int64_t *counts,
                    int64_t *sources, int64_t *kinds)
{
    if (!read_rows(all, asked)) return 0;
    for (int64_t i = 0; i < asked->rows * OF_REJECTED; i++) {
        const int64_t room = least(asked->rooms[i / OF_REJECTED], asked->most);
        struct proposal *one = &all->other;
        one->count = one->source = one->kind = 0;
        if (room) propose(all, all->rows[i / OF_REJECTED], i % OF_REJECTED, room, one);
        memcpy(tokens + i * asked->most, one->tokens, one->count * sizeof *tokens);
        memcpy(confidence + i * asked->most, one->confidence, one->count * sizeof *confidence);
        counts[i] = one->count, sources[i] = one->source, kinds[i] = one->kind;
    }
    return 1;
}

/* ---------------------------------------------------------------- what became of it */

/* The drafts of other rows than these go no further. */
void lookups_give_way(struct lookups *all, const uint8_t *is_used)
{
    for (int64_t i = 0; i < all->sent_rows; i++) all->sent[i].sent *= is_used[i];
}

void lookups_commit(struct lookups *all, const int64_t *accepted)
{
    for (int64_t i = 0; i < all->sent_rows; i++)
        if (all->sent[i].sent) lookups_count(all, all->sent[i].source, all->sent[i].kind, all->sent[i].sent, accepted[i]);
    all->sent_rows = 0;
}

/* A model drafted this for a row, of which something may come yet; 0 tokens: nothing. Returns 0 without memory. */
int64_t lookups_recycle(struct lookups *all, int64_t slot, const int64_t *tokens, int64_t count)
{
    if (slot >= all->slots || !all->rows[slot]) return 0;
    struct old *old = &all->rows[slot]->rejected;
    old->habits = 0;
    if (!count) return 1;
    if (!renew(old, &all->habits_of_drafts, count)) return 0;
    for (int64_t i = 0; i < count; i++) old->text.tokens[1 + i] = (int32_t)tokens[i];
    return 1;
}

/* All that was learned: rates [source][kind][4], then of both habits what is usual [count][3] and of tokens [token][3]. */
void lookups_learned(const struct lookups *all, double *numbers)
{
    const double *rates = (const double *)all->rates;
    for (size_t i = 0; i < sizeof all->rates / sizeof(double); i++) *numbers++ = rates[i] / all->weight;
    const struct habits *both[] = {&all->habits, &all->habits_of_drafts};
    for (int i = 0; i < 2; i++) {
        memcpy(numbers, both[i]->usual, sizeof both[i]->usual), numbers += (LOST + 1) * WAYS;
        memcpy(numbers, both[i]->of_token, all->vocabulary * sizeof *both[i]->of_token), numbers += all->vocabulary * WAYS;
    }
}
