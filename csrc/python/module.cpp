// tore_fast._C: host-side functions on the bytes of numpy arrays (no tensors; those go through torch.ops.tore_fast).
// Loading this module also registers the CPU kernels of csrc/torch/*.cpp with the dispatcher.
// Only Python's limited API of 3.10 is used, so that one binary serves every later Python.
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/block_cache.h"
#include "../cpu/decimate.h"
#include "../cpu/simd.h"
#include "build_facts.h"

namespace {

PyObject* build_info(PyObject*, PyObject*) { return PyUnicode_FromString(TORE_FAST_BUILD_FACTS); }

PyObject* simd(PyObject*, PyObject*) {
  const std::string name = tore_fast::cpu::simd_name();
  return PyUnicode_FromString(name.c_str());
}

PyObject* cached_bytes(PyObject*, PyObject*) {
  return PyLong_FromLongLong(static_cast<long long>(tore_fast::cpu::cached_bytes()));
}

PyObject* release_blocks(PyObject*, PyObject*) {
  tore_fast::cpu::release_blocks();
  Py_RETURN_NONE;
}

// Rows of `columns` numbers in a bytes object; the copy is aligned for T.
template <class T>
std::vector<T> numbers(PyObject* bytes, size_t columns, const char* what) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) != 0) {
    PyErr_Clear();
    throw std::invalid_argument(std::string("decimate: ") + what + " must be bytes");
  }
  if (static_cast<size_t>(size) % (columns * sizeof(T)) != 0)
    throw std::invalid_argument(std::string("decimate: ") + what + " must be rows of three numbers");
  std::vector<T> out(static_cast<size_t>(size) / sizeof(T));
  if (size > 0) std::memcpy(out.data(), data, static_cast<size_t>(size));
  return out;
}

PyObject* to_bytes(const std::vector<int32_t>& v) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(v.data()),
                                   static_cast<Py_ssize_t>(v.size() * sizeof(int32_t)));
}

PyObject* to_list(const std::vector<tore_fast::cpu::DecimatedLevel>& levels) {
  PyObject* out = PyList_New(static_cast<Py_ssize_t>(levels.size()));
  for (size_t i = 0; out != nullptr && i < levels.size(); ++i) {
    PyObject* kept = to_bytes(levels[i].kept);
    PyObject* faces = to_bytes(levels[i].faces);
    PyObject* pair = kept && faces ? PyTuple_Pack(2, kept, faces) : nullptr;
    Py_XDECREF(kept);
    Py_XDECREF(faces);
    if (pair == nullptr || PyList_SetItem(out, static_cast<Py_ssize_t>(i), pair) != 0) {  // takes the pair
      Py_DECREF(out);
      return nullptr;
    }
  }
  return out;
}

PyObject* decimate(PyObject*, PyObject* args) {
  PyObject *vertex_bytes = nullptr, *face_bytes = nullptr, *target_bytes = nullptr;
  if (!PyArg_ParseTuple(args, "SSS:decimate", &vertex_bytes, &face_bytes, &target_bytes)) return nullptr;
  std::string wrong;
  PyObject* kind = PyExc_RuntimeError;
  std::vector<tore_fast::cpu::DecimatedLevel> levels;
  try {
    const auto vertices = numbers<double>(vertex_bytes, 3, "vertices");
    const auto faces = numbers<int32_t>(face_bytes, 3, "faces");
    const auto targets = numbers<int64_t>(target_bytes, 1, "targets");
    PyThreadState* locked = PyEval_SaveThread();
    try {
      levels = tore_fast::cpu::decimate(vertices.data(), static_cast<int64_t>(vertices.size() / 3), faces.data(),
                                        static_cast<int64_t>(faces.size() / 3), targets);
    } catch (...) {
      PyEval_RestoreThread(locked);
      throw;
    }
    PyEval_RestoreThread(locked);
  } catch (const std::invalid_argument& e) {
    wrong = e.what(), kind = PyExc_ValueError;
  } catch (const std::exception& e) {
    wrong = e.what();
  }
  if (!wrong.empty()) {
    PyErr_SetString(kind, wrong.c_str());
    return nullptr;
  }
  return to_list(levels);
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "JSON text: torch headers, compiler, nvcc and CUDA architectures this binary was made with."},
    {"simd", simd, METH_NOARGS, "The widest of our vector builds that runs here: avx512, avx2 or none."},
    {"cached_bytes", cached_bytes, METH_NOARGS, "Bytes kept for the next large result of a CPU kernel."},
    {"release_blocks", release_blocks, METH_NOARGS, "Gives these bytes back to the system."},
    {"decimate", decimate, METH_VARARGS,
     "Nested vertex-subset quadric edge collapse: bytes of vertices [V,3] float64, faces [F,3] int32 and falling "
     "targets int64 -> [(kept [n] int32, faces [f,3] int32 into kept), ...] as bytes, one pair a target. See "
     "tore_fast.body.decimate."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_C",
                      "Compiled half of tore_fast: CPU kernels (registered on load) and host-side mesh functions.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
