/* ------------------------------------------------------------------ trees of drafts

   As `Forest` of cmasd/drafters/forest.py, which says what is done and why. A row's tokens lie together in the order in
   which they came; a parent is a place among them, -1 the row's last token. */

struct forest {
    const double *go_on, *keep, *offsets; /* as in struct rule */
    double slope, edge, more[2];
    int64_t is_mean, most, budget, rows, room; /* room: places that a row has for tokens */
    const int64_t *rooms, *ends;
    int64_t end_count, depth, drawn;
    int64_t *counts, *fed_counts, *latest; /* [row]: tokens, those gone on from, and how many of these are to be next */
    int64_t *tokens, *parents, *drawn_from, *order; /* [row][room]; order: the likeliest first, of equals the earlier */
    int64_t *fed;                                   /* [row][budget]: gone on from, in this order */
    double *chances, *statistics;                   /* [row][room] */
    float *confidence, *logprobs, *components;      /* [row][room]; the last of three each */
};

/* Compiled to be fast, a comparison with itself says nothing of a number. */
static int64_t is_nan(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return (bits & 0x7fffffff) > 0x7f800000;
}

static double share_of(const struct forest *f, double confidence, const float *components)
{
    if (!f->offsets) return confidence;
    double known = log_odds(confidence, f->edge), odds = f->slope * known + f->offsets[f->depth];
    for (int64_t i = 0; i < 2 && components; i++)
        if (f->more[i] != 0 && !is_nan(components[2 * i]))
            odds += f->more[i] * (log_odds(components[2 * i], f->edge) - known);
    return 1 / (1 + exp(-odds));
}

/* One more token of a row. */
static void put_node(struct forest *f, int64_t row, int64_t token, int64_t parent, double chance, double statistic)
{
    int64_t base = row * f->room, at = f->counts[row]++, place = at;
    int64_t *order = f->order + base;
    f->tokens[base + at] = token, f->parents[base + at] = parent;
    f->chances[base + at] = chance, f->statistics[base + at] = statistic;
    for (; place > 0 && f->chances[base + order[place - 1]] < chance; place--) order[place] = order[place - 1];
    order[place] = at;
}

/* Of a row's tokens from `first` on those that the rule and the budget let go on, the likeliest first. */
static void go_on_from(struct forest *f, int64_t row, int64_t first)
{
    const int64_t base = row * f->room, count = f->counts[row], *order = f->order + base, depth = f->depth + 1;
    const int64_t deepest = f->most < f->rooms[row] ? f->most : f->rooms[row], left = f->budget - f->fed_counts[row];
    int64_t spare = left - ((deepest < f->budget ? deepest : f->budget) - depth - 1), taken = 0, seen = 0, lead = 0;
    if (spare < 1) spare = 1;
    if (spare > left) spare = left;
    while (order[lead] < first) lead++;
    const double step = pow(f->chances[base + order[lead]], 1.0 / depth);
    double bar = 0, next = f->chances[base + order[lead]] * step;
    for (int64_t ahead = deepest - depth; taken < f->budget && (seen < count || ahead > 0); taken++) {
        if (ahead > 0 && (seen == count || next > f->chances[base + order[seen]])) bar = next, next *= step, ahead--;
        else bar = f->chances[base + order[seen++]];
    }
    bar = taken < f->budget ? 0 : bar * (1 - 1e-9);
    for (int64_t i = 0; i < count && spare > 0; i++) {
        int64_t at = order[i];
        if (at < first || f->chances[base + at] * step < bar || f->statistics[base + at] < f->go_on[f->depth]) continue;
        if (is_one_of(f->tokens[base + at], f->ends, f->end_count)) continue;
        f->fed[row * f->budget + f->fed_counts[row]++] = at;
        f->latest[row]++, spare--;
    }
}

/* The ways that may follow each token that was to be gone on from, [token][way], row by row; `confidence` is of the
   first, the others have their share of it. Returns how many are to be gone on from next. */
int64_t tree_grow(struct forest *f, int64_t ways, const int64_t *tokens, const float *shares, const float *logprobs,
                  const float *confidence, const float *components, const float *unknown)
{
    int64_t asked = 0, going = 0;
    for (int64_t row = 0; row < f->rows; row++) {
        const int64_t base = row * f->room, first = f->counts[row], latest = f->latest[row];
        for (int64_t i = 0; i < latest; i++, asked++) {
            int64_t parent = f->depth ? f->fed[row * f->budget + f->fed_counts[row] - latest + i] : -1;
            double before = 1, statistic = !f->is_mean, left = 1, sure = 0.5;
            if (parent >= 0) before = f->chances[base + parent], statistic = f->statistics[base + parent];
            if (!is_nan(confidence[asked])) sure = confidence[asked];
            for (int64_t way = 0; way < ways; way++) {
                const int64_t from = asked * ways + way, at = base + f->counts[row];
                if (!(shares[from] > 0)) continue;
                double own = sure * shares[from];
                if (own > left) own = left;
                left -= own;
                const float *why = way ? unknown : components + 3 * asked;
                double share = share_of(f, own, way ? 0 : why);
                double now = f->is_mean ? (statistic * f->depth + share) / (f->depth + 1) : statistic * share;
                if (now < f->keep[f->depth]) continue;
                f->confidence[at] = own, f->logprobs[at] = logprobs[from], f->drawn_from[at] = f->drawn + asked;
                memcpy(f->components + 3 * at, why, 3 * sizeof(float));
                put_node(f, row, tokens[from], parent, before * share, now);
            }
        }
        f->latest[row] = 0;
        if (f->counts[row] > first && f->depth + 1 < f->most && f->depth + 1 < f->rooms[row]) go_on_from(f, row, first);
        going += f->latest[row];
    }
    f->depth++, f->drawn += asked;
    return going;
}

static int64_t place_of(const int64_t *numbers, int64_t count, int64_t number)
{
    for (int64_t place = 0; place < count; place++)
        if (numbers[place] == number) return place;
    return -1;
}

/* What is to be run next: of every row with tokens to be gone on from, all that were; and where the latest are in the
   list. Returns how many rows there are. */
int64_t tree_window(const struct forest *f, int64_t *rows, int64_t *firsts, int64_t *tokens, int64_t *parents, int64_t *asked)
{
    int64_t count = 0, questions = 0;
    firsts[0] = 0;
    for (int64_t row = 0; row < f->rows; row++) {
        const int64_t *fed = f->fed + row * f->budget, size = f->fed_counts[row], base = row * f->room;
        if (!f->latest[row]) continue;
        for (int64_t place = 0; place < size; place++) {
            tokens[firsts[count] + place] = f->tokens[base + fed[place]];
            parents[firsts[count] + place] = place_of(fed, size, f->parents[base + fed[place]]);
            if (place >= size - f->latest[row]) asked[questions++] = firsts[count] + place;
        }
        rows[count++] = row;
        firsts[count] = firsts[count - 1] + size;
    }
    return count;
}

/* The likeliest tokens of each row, along the likeliest path first; `width` places for each, which hold what stands
   where there is no token. */
void tree_draft(const struct forest *f, int64_t width, int64_t *tokens, int64_t *parents, int64_t *drawn,
                float *confidence, float *components, float *logprobs)
{
    for (int64_t row = 0; row < f->rows; row++) {
        const int64_t base = row * f->room, out = row * width, *order = f->order + base;
        int64_t size = f->counts[row] < f->budget ? f->counts[row] : f->budget, place = 0, at = -1;
        int64_t stack[size + 1], held = 0, chosen[size + 1];
        for (;;) {
            for (int64_t i = size - 1; i >= 0; i--)
                if (f->parents[base + order[i]] == at) stack[held++] = order[i];
            if (!held) break;
            at = stack[--held];
            tokens[out + place] = f->tokens[base + at], drawn[out + place] = f->drawn_from[base + at];
            parents[out + place] = place_of(chosen, place, f->parents[base + at]);
            confidence[out + place] = f->confidence[base + at], logprobs[out + place] = f->logprobs[base + at];
            memcpy(components + 3 * (out + place), f->components + 3 * (base + at), 3 * sizeof(float));
            chosen[place++] = at;
        }
    }
}

/* How many of the tokens that each row said lie on a path of those that were gone on from; and what of a cache that holds
   these in their order has to be moved to make the path contiguous: [row, from, to]. Returns how many moves there are. */
int64_t tree_path(const struct forest *f, const int64_t *said, int64_t said_stride, const int64_t *lengths,
                  const int64_t *accepted, int64_t *held, int64_t *moves)
{
    int64_t count = 0;
    for (int64_t row = 0; row < f->rows; row++) {
        const int64_t *fed = f->fed + row * f->budget, *text = said + row * said_stride + lengths[row];
        int64_t base = row * f->room, at = -1, depth = 0;
        for (; depth < accepted[row]; depth++) {
            int64_t place = 0;
            while (place < f->fed_counts[row] &&
                   (f->parents[base + fed[place]] != at || f->tokens[base + fed[place]] != text[depth])) place++;
            if (place == f->fed_counts[row]) break;
            at = fed[place];
            if (place != depth) {
                moves[3 * count] = row, moves[3 * count + 1] = lengths[row] + place;
                moves[3 * count++ + 2] = lengths[row] + depth;
            }
        }
        held[row] = depth;
    }
    return count;
}

/* Of each row the path to an end of its tree along the likeliest ways, of equals the lowest id; `logits` are behind each
   row's last token, at `firsts`, then behind each of its tree's. `paths` [row][width], `sizes` [row]. */
void tree_judge(const REAL *logits, int64_t columns, const int64_t *firsts, const int64_t *tokens, const int64_t *parents,
                const int64_t *lengths, int64_t rows, int64_t width, int64_t *paths, int64_t *sizes)
{
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *mine = tokens + row * width, *before = parents + row * width;
        int64_t at = -1, size = 0;
        for (;;) {
            const REAL *z = logits + (firsts[row] + 1 + at) * columns;
            int64_t best = -1;
            for (int64_t i = at + 1; i < lengths[row]; i++) {
                if (before[i] != at) continue;
                if (best < 0 || z[mine[i]] > z[mine[best]] || (z[mine[i]] == z[mine[best]] && mine[i] < mine[best])) best = i;
            }
            if (best < 0) break;
            paths[row * width + size++] = at = best;
        }
        sizes[row] = size;
    }
}
