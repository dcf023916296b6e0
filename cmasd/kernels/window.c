/* ------------------------------------------------------------------ windows

   The tokens of one forward as a flat list, run after run: a run is consecutive tokens of one slot, from the place of its
   first token on. Rows may have runs of any length, and a forward pays for the tokens that there are.

   A run may be a tree: a token then sees what was there before the run, and its ancestors. */

struct window {
    const int64_t *tokens, *slots, *starts; /* of each token; of each run its slot, and the place of its first token */
    const int64_t *firsts;                  /* where runs begin, and behind the last one where it ends */
    int64_t runs;
    const int64_t *parents; /* the token of its run that each one follows, -1: none of them; null: the one before */
};

static int64_t size_of(const struct window *window) { return window->firsts[window->runs] - window->firsts[0]; }

/* The run of the nth token. */
static int64_t run_of(const struct window *window, int64_t n)
{
    int64_t low = 0, high = window->runs - 1;
    while (low < high) {
        const int64_t half = (low + high + 1) / 2;
        if (window->firsts[half] - window->firsts[0] <= n) low = half;
        else high = half - 1;
    }
    return low;
}

/* How many tokens of its run the nth of the list follows. */
static int64_t depth_of(const struct window *window, int64_t first, int64_t n)
{
    int64_t depth = 0;
    if (!window->parents) return n - first;
    for (int64_t at = n - first; (at = window->parents[first + at]) >= 0;) depth++;
    return depth;
}

static int64_t longest_of(const struct window *window)
{
    int64_t longest = 0;
    for (int64_t run = 0; run < window->runs; run++) {
        int64_t length = window->firsts[run + 1] - window->firsts[run];
        longest = length > longest ? length : longest;
    }
    return longest;
}

/* The runs of one of `parts` shares with about as many tokens each. */
static struct window part_of(const struct window *window, int64_t part, int64_t parts)
{
    int64_t size = size_of(window), from = 0, to;
    while (window->firsts[from] - window->firsts[0] < size * part / parts) from++;
    for (to = from; window->firsts[to] - window->firsts[0] < size * (part + 1) / parts;) to++;
    return (struct window){window->tokens, window->slots + from, window->starts + from, window->firsts + from, to - from,
                           window->parents};
}
