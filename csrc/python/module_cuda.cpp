// tore_fast._C_cuda: an empty Python module; importing it registers the CUDA kernels of csrc/torch_cuda/*.cpp.
// Its docstring's second line is the JSON of build facts (tore_fast/_ext.py reads it).
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include "build_facts.h"

static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C_cuda",
                                 "CUDA kernels of tore_fast.\n" TORE_FAST_BUILD_FACTS, -1, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module_def); }
