#include "../cuda/rasterize.h"

#include "../torch/rasterize_args.h"
#include "stable_cuda.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> rasterize_cuda(const Tensor& vertices_in, const Tensor& faces_in, int64_t height,
                                                  int64_t width) {
  DeviceGuard guard(vertices_in.get_device_index());
  const RasterizeArgs a(vertices_in, faces_in, height, width);
  Tensor nearest = make_tensor(a.vertices, {a.batch, height, width}, ScalarType::Long);
  Tensor face_index = make_tensor(a.vertices, {a.batch, height, width}, ScalarType::Int);
  Tensor depth = make_tensor(a.vertices, {a.batch, height, width});
  Tensor barycentric = make_tensor(a.vertices, {a.batch, height, width, 3});
  const cuda::RasterizeParams p{a.vertices.const_data_ptr<float>(),
                                a.faces.const_data_ptr<int32_t>(),
                                reinterpret_cast<unsigned long long*>(nearest.mutable_data_ptr<int64_t>()),
                                face_index.mutable_data_ptr<int32_t>(),
                                depth.mutable_data_ptr<float>(),
                                barycentric.mutable_data_ptr<float>(),
                                a.batch,
                                a.count,
                                a.num_faces,
                                int(height),
                                int(width)};
  STD_CUDA_CHECK(cuda::rasterize(p, current_stream(a.vertices)));
  return {face_index, depth, barycentric};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("rasterize", TORCH_BOX(&rasterize_cuda)); }

}  // namespace tore_fast
