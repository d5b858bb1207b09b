// tore_fast._C: host-side functions on numpy arrays (no tensors; those go through torch.ops.tore_fast).
// Loading this module also registers the CPU kernels of csrc/torch/*.cpp with the dispatcher.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "../cpu/block_cache.h"
#include "../cpu/simd.h"
#include "../cpu/decimate.h"
#include "build_facts.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

py::array_t<int32_t> to_array(const std::vector<int32_t>& v, std::vector<py::ssize_t> shape) {
  py::array_t<int32_t> out(shape);
  if (!v.empty()) std::memcpy(out.mutable_data(), v.data(), v.size() * sizeof(int32_t));
  return out;
}

py::list decimate(const Array<double>& vertices, const Array<int32_t>& faces,
                  const std::vector<int64_t>& targets) {
  if (vertices.ndim() != 2 || vertices.shape(1) != 3)
    throw py::value_error("decimate: vertices must be [V, 3]");
  if (faces.ndim() != 2 || faces.shape(1) != 3) throw py::value_error("decimate: faces must be [F, 3]");
  std::vector<tore_fast::cpu::DecimatedLevel> levels;
  {
    py::gil_scoped_release unlocked;
    levels =
        tore_fast::cpu::decimate(vertices.data(), vertices.shape(0), faces.data(), faces.shape(0), targets);
  }
  py::list out;
  for (const auto& level : levels)
    out.append(py::make_tuple(to_array(level.kept, {py::ssize_t(level.kept.size())}),
                              to_array(level.faces, {py::ssize_t(level.faces.size() / 3), 3})));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled half of tore_fast: CPU kernels (registered on load) and host-side mesh functions.";
  m.def(
      "build_info", [] { return TORE_FAST_BUILD_FACTS; },
      "JSON text: torch headers, compiler, nvcc and CUDA architectures this binary was made with.");
  m.def("simd", &tore_fast::cpu::simd_name, "The widest of our vector builds that runs here: avx512, avx2 or none.");
  m.def("cached_bytes", &tore_fast::cpu::cached_bytes, "Bytes kept for the next large result of a CPU kernel.");
  m.def("release_blocks", &tore_fast::cpu::release_blocks, "Gives these bytes back to the system.");
  m.def("decimate", &decimate, py::arg("vertices"), py::arg("faces"), py::arg("targets"),
        "Nested vertex-subset quadric edge collapse: vertices [V,3] float64, faces [F,3] int32, falling "
        "targets -> "
        "[(kept [n] int32, faces [f,3] int32 into kept), ...], one pair a target. See "
        "tore_fast.body.decimate.");
}
