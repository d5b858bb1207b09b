#include "../cpu/mesh_upsample.h"

#include "mesh_upsample_args.h"

namespace tore_fast {
namespace {

Tensor mesh_upsample_cpu(const Tensor& x_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
                         const Tensor& values_in, const Tensor&, const Tensor&, const Tensor&) {
  const MeshUpsampleArgs a(x_in, row_ptr_in, col_idx_in, values_in);
  STD_TORCH_CHECK(a.x.scalar_type() == ScalarType::Float, "mesh_upsample: x must be float32");
  check_csr(a.row_ptr, a.col_idx, a.cols, "mesh_upsample");
  Tensor y = empty_floats(a.x, {a.batch, a.rows, a.features});
  const cpu::MeshUpsampleParams p{a.x.const_data_ptr<float>(),
                                  a.row_ptr.const_data_ptr<int32_t>(),
                                  a.col_idx.const_data_ptr<int32_t>(),
                                  a.values.const_data_ptr<float>(),
                                  y.mutable_data_ptr<float>(),
                                  a.rows,
                                  a.cols,
                                  a.features,
                                  a.batch};
  torch::stable::parallel_for(0, a.batch * a.rows, 8192,  // about 20 us: less is not worth a second thread
                              [&](int64_t begin, int64_t end) { cpu::mesh_upsample(p, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("mesh_upsample", TORCH_BOX(&mesh_upsample_cpu)); }

}  // namespace tore_fast
