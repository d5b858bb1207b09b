#include "../cuda/mesh_upsample.h"

#include "stable_cuda.h"

namespace tore_fast {
namespace {

Tensor mesh_upsample_cuda(const Tensor& x_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
                          const Tensor& values_in, const Tensor&, const Tensor&, const Tensor&) {
  const cuda::DType dtype = dtype_of(x_in, "mesh_upsample: x");
  const Tensor x = checked(x_in, x_in.scalar_type(), 3, "mesh_upsample: x");
  const Tensor row_ptr = checked(row_ptr_in, ScalarType::Int, 1, "mesh_upsample: row_ptr");
  const Tensor col_idx = checked(col_idx_in, ScalarType::Int, 1, "mesh_upsample: col_idx");
  const Tensor values = checked(values_in, ScalarType::Float, 1, "mesh_upsample: values");
  DeviceGuard guard(x.get_device_index());
  const int64_t rows = row_ptr.size(0) - 1;
  Tensor y = torch::stable::new_empty(x, {x.size(0), rows, x.size(2)});
  const cuda::MeshUpsampleParams p{x.const_data_ptr(),
                                   row_ptr.const_data_ptr<int32_t>(),
                                   col_idx.const_data_ptr<int32_t>(),
                                   values.const_data_ptr<float>(),
                                   y.mutable_data_ptr(),
                                   x.size(0),
                                   rows,
                                   x.size(1),
                                   x.size(2)};
  STD_CUDA_CHECK(cuda::mesh_upsample(p, dtype, current_stream(x)));
  return y;
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("mesh_upsample", TORCH_BOX(&mesh_upsample_cuda)); }

}  // namespace tore_fast
