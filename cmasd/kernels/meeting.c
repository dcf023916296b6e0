/* ------------------------------------------------------------------ meeting

   Where the threads of a team wait for each other. OpenMP's own barriers spin for milliseconds first: best for products
   of microseconds on processors that nobody else uses; but a thread that spins on the processor that the other one needs
   holds both up for a time slice, in every product of every layer. Here they spin for as long as a thread that runs
   takes, then sleep. */

#define SPINS 2000

struct meeting {
    uint32_t round, arrived, asleep;
};

static void rest(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static __thread struct meeting *team; /* of the team that this thread is of, which it sets when it joins */

/* Nobody goes on before all have come, nor sees less than what they have written. */
static void meet(void)
{
    struct meeting *meeting = team;
    const uint32_t threads = omp_get_num_threads();
    if (threads == 1) return;
    const uint32_t round = __atomic_load_n(&meeting->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&meeting->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(&meeting->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&meeting->round, round + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&meeting->asleep, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &meeting->round, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
        return;
    }
    for (int spin = 0; spin < SPINS; spin++, rest())
        if (__atomic_load_n(&meeting->round, __ATOMIC_ACQUIRE) != round) return;
    __atomic_add_fetch(&meeting->asleep, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&meeting->round, __ATOMIC_SEQ_CST) == round)
        syscall(SYS_futex, &meeting->round, FUTEX_WAIT_PRIVATE, round, 0, 0, 0);
    __atomic_sub_fetch(&meeting->asleep, 1, __ATOMIC_SEQ_CST);
}
