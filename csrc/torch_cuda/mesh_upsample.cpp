#include "../cuda/mesh_upsample.h"

#include "../torch/mesh_upsample_args.h"
#include "stable_cuda.h"

namespace tore_fast {
namespace {

Tensor mesh_upsample_cuda(const Tensor& x_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
                          const Tensor& values_in, const Tensor&, const Tensor&, const Tensor&) {
  const cuda::DType dtype = dtype_of(x_in, "mesh_upsample: x");
  DeviceGuard guard(x_in.get_device_index());
  const MeshUpsampleArgs a(x_in, row_ptr_in, col_idx_in, values_in);
  Tensor y = make_tensor(a.x, {a.batch, a.rows, a.features});
  const cuda::MeshUpsampleParams p{a.x.const_data_ptr(),
                                   a.row_ptr.const_data_ptr<int32_t>(),
                                   a.col_idx.const_data_ptr<int32_t>(),
                                   a.values.const_data_ptr<float>(),
                                   y.mutable_data_ptr(),
                                   a.batch,
                                   a.rows,
                                   a.cols,
                                   a.features};
  STD_CUDA_CHECK(cuda::mesh_upsample(p, dtype, current_stream(a.x)));
  return y;
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("mesh_upsample", TORCH_BOX(&mesh_upsample_cuda)); }

}  // namespace tore_fast
