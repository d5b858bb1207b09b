#include "../cpu/rasterize.h"

#include "stable.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> rasterize_cpu(const Tensor& vertices_in, const Tensor& faces_in, int64_t height,
                                                 int64_t width) {
  const Tensor vertices = checked(vertices_in, ScalarType::Float, 3, "rasterize: vertices_px");
  const Tensor faces = checked(faces_in, ScalarType::Int, 2, "rasterize: faces");
  STD_TORCH_CHECK(vertices.size(2) == 3 && faces.size(1) == 3, "rasterize: last dimensions must be 3");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= 1 << 15 && width <= 1 << 15, "rasterize: bad image size");
  const int64_t batch = vertices.size(0), count = vertices.size(1);
  const int32_t* index = faces.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < faces.size(0) * 3; ++i) {
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < count, "rasterize: faces refer to vertex ", index[i], " of ", count);
  }
  Tensor face_index = torch::stable::new_empty(vertices, {batch, height, width}, ScalarType::Int);
  Tensor depth = torch::stable::new_empty(vertices, {batch, height, width});
  Tensor barycentric = torch::stable::new_empty(vertices, {batch, height, width, 3});
  const cpu::RasterizeParams p{vertices.const_data_ptr<float>(),
                               index,
                               face_index.mutable_data_ptr<int32_t>(),
                               depth.mutable_data_ptr<float>(),
                               barycentric.mutable_data_ptr<float>(),
                               count,
                               faces.size(0),
                               int(height),
                               int(width),
                               batch < 16 && height >= 512 ? 8 : 1};
  torch::stable::parallel_for(0, batch * p.bands, 1,
                              [&](int64_t begin, int64_t end) { cpu::rasterize(p, begin, end); });
  return {face_index, depth, barycentric};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("rasterize", TORCH_BOX(&rasterize_cpu)); }

}  // namespace tore_fast
