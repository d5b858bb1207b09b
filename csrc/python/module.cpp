// tore_fast._C: host-side functions on numpy arrays (no tensors; those go through torch.ops.tore_fast).
// Loading this module also registers the CPU kernels of csrc/torch/*.cpp with the dispatcher.
#include <pybind11/pybind11.h>

#include "build_facts.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled half of tore_fast: CPU kernels (registered on load) and host-side mesh functions.";
  m.def(
      "build_info", [] { return TORE_FAST_BUILD_FACTS; },
      "JSON text: torch headers, compiler, nvcc and CUDA architectures this binary was made with.");
}
