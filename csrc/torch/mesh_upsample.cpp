#include "../cpu/mesh_upsample.h"

#include "stable.h"

namespace tore_fast {
namespace {

Tensor mesh_upsample_cpu(const Tensor& x_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
                         const Tensor& values_in, const Tensor&, const Tensor&, const Tensor&) {
  const Tensor x = checked(x_in, ScalarType::Float, 3, "mesh_upsample: x");
  const Tensor row_ptr = checked(row_ptr_in, ScalarType::Int, 1, "mesh_upsample: row_ptr");
  const Tensor col_idx = checked(col_idx_in, ScalarType::Int, 1, "mesh_upsample: col_idx");
  const Tensor values = checked(values_in, ScalarType::Float, 1, "mesh_upsample: values");
  STD_TORCH_CHECK(values.size(0) == col_idx.size(0), "mesh_upsample: values and col_idx differ in length");
  const int64_t rows = row_ptr.size(0) - 1;
  Tensor y = empty_floats(x, {x.size(0), rows, x.size(2)});
  const cpu::MeshUpsampleParams p{x.const_data_ptr<float>(),
                                  row_ptr.const_data_ptr<int32_t>(),
                                  col_idx.const_data_ptr<int32_t>(),
                                  values.const_data_ptr<float>(),
                                  y.mutable_data_ptr<float>(),
                                  rows,
                                  x.size(1),
                                  x.size(2),
                                  x.size(0)};
  torch::stable::parallel_for(0, x.size(0) * rows, 8192,  // about 20 us: less is not worth a second thread
                             
                              [&](int64_t begin, int64_t end) { cpu::mesh_upsample(p, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("mesh_upsample", TORCH_BOX(&mesh_upsample_cpu)); }

}  // namespace tore_fast
