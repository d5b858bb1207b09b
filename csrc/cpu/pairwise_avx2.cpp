// Compiled with -mavx2 -mfma (see setup.py); only called where the processor has both.
#define TORE_FAST_LANES 8
#define TORE_FAST_TABLE pairwise_avx2
#include "pairwise_loops.h"
