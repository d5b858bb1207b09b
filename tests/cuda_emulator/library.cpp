// Settings of the library that tests/ops/emulated.py builds from csrc/torch_cuda, csrc/cuda and the emulator.
#include "cuda_runtime_api.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void emulator_setup(unsigned seed, int64_t shared_limit) {
  emulator::seed = seed;
  emulator::shared_limit = shared_limit;
  emulator::launches = 0;
}

EXPORTED int emulator_launches() { return emulator::launches; }
