/* ------------------------------------------------------------------ halves

   Keys and values of 16 bits (bfloat16) beside numbers of full width: half the memory, and half of what attention reads.
   What a token leaves behind is rounded to the nearest, and read back by itself too, so that a row sees the same numbers
   however its tokens came. */

static inline uint16_t narrowed(REAL x)
{
    const float full = (float)x;
    uint32_t word;
    memcpy(&word, &full, sizeof word);
    return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

static inline REAL broadened(uint16_t half)
{
    const uint32_t word = (uint32_t)half << 16;
    float full;
    memcpy(&full, &word, sizeof full);
    return full;
}

/* `attend_one` over halves. */
static inline __attribute__((always_inline)) void attend_halves(
    const REAL *query, const uint16_t *lines, int64_t count, int64_t width, REAL scale, REAL *scores, REAL *out)
{
    REAL top = LEAST, mass = 0, sums[width];
    for (int64_t j = 0; j < count; j++) {
        REAL product = 0;
        for (int64_t i = 0; i < width; i++) product += query[i] * broadened(lines[2 * j * width + i]);
        scores[j] = product * scale;
        top = scores[j] > top ? scores[j] : top;
    }
    for (int64_t j = 0; j < count; j++) mass += scores[j] = EXP(scores[j] - top);
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < width; i++) sums[i] += scores[j] * broadened(lines[(2 * j + 1) * width + i]);
    for (int64_t i = 0; i < width; i++) out[i] = sums[i] / mass;
}
