/* What torch has no kernel for on a CPU; built by build.py, called by calls.py. REAL is float or double.

   One translation unit: each part is a file of its own and builds on those before it.

   Functions whose name begins with `share` are shared out among the threads that call them. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LEAST -1e30 /* below any score; an infinity has no place in code that is compiled to be fast */
#define NOTHING -80 /* exp of it counts as nothing beside 1 */

#include "signals.h" /* written by build.py: the places of cmasd/signals.py */
#include "rule.h"
#include "meeting.c"
#include "window.c"
#include "halves.c"
#include "attention.c"
#include "logits.c"
#include "rows.c"
#include "products.c"
#include "layers.c"
#include "rotary.c"
#include "drafts.c"
#include "trees.c"
