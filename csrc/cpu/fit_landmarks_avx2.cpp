// Compiled with -mavx2 -mfma (see setup.py); only called where the processor has both.
#define TORE_FAST_NAME(name) name##_avx2
#include "fit_landmarks_loops.h"
