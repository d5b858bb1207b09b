// tore_fast._C_cuda: an empty Python module; importing it registers the CUDA kernels of csrc/torch_cuda/*.cpp.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C_cuda", "CUDA kernels of tore_fast.", -1, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module_def); }
