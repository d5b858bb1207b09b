#include "../cuda/rasterize.h"

#include "stable_cuda.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> rasterize_cuda(const Tensor& vertices_in, const Tensor& faces_in, int64_t height,
                                                  int64_t width) {
  const Tensor vertices = checked(vertices_in, ScalarType::Float, 3, "rasterize: vertices_px");
  const Tensor faces = checked(faces_in, ScalarType::Int, 2, "rasterize: faces");
  STD_TORCH_CHECK(vertices.size(2) == 3 && faces.size(1) == 3, "rasterize: last dimensions must be 3");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= 1 << 15 && width <= 1 << 15, "rasterize: bad image size");
  DeviceGuard guard(vertices.get_device_index());
  const int64_t batch = vertices.size(0);
  Tensor nearest = torch::stable::new_empty(vertices, {batch, height, width}, ScalarType::Long);
  Tensor face_index = torch::stable::new_empty(vertices, {batch, height, width}, ScalarType::Int);
  Tensor depth = torch::stable::new_empty(vertices, {batch, height, width});
  Tensor barycentric = torch::stable::new_empty(vertices, {batch, height, width, 3});
  const cuda::RasterizeParams p{vertices.const_data_ptr<float>(),
                                faces.const_data_ptr<int32_t>(),
                                reinterpret_cast<unsigned long long*>(nearest.mutable_data_ptr<int64_t>()),
                                face_index.mutable_data_ptr<int32_t>(),
                                depth.mutable_data_ptr<float>(),
                                barycentric.mutable_data_ptr<float>(),
                                batch,
                                vertices.size(1),
                                faces.size(0),
                                int(height),
                                int(width)};
  STD_CUDA_CHECK(cuda::rasterize(p, current_stream(vertices)));
  return {face_index, depth, barycentric};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("rasterize", TORCH_BOX(&rasterize_cuda)); }

}  // namespace tore_fast
