// Compiled with -mavx2 -mfma (see setup.py); only called where the processor has both.
#define TORE_FAST_LANES 8
#define TORE_FAST_ROW_SUM row_sum_avx2
#include "row_sum_loops.h"
