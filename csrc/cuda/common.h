// What host bindings and launchers share: the element type of a tensor, as a plain enum (no torch header here).
#pragma once

namespace tore_fast::cuda {

enum class DType { kFloat32, kFloat16, kBFloat16 };

}  // namespace tore_fast::cuda
