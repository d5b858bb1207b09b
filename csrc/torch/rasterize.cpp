#include "../cpu/rasterize.h"

#include "rasterize_args.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> rasterize_cpu(const Tensor& vertices_in, const Tensor& faces_in, int64_t height,
                                                 int64_t width) {
  const RasterizeArgs a(vertices_in, faces_in, height, width);
  const int32_t* index = a.faces.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < a.num_faces * 3; ++i) {
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < a.count, "rasterize: faces refer to vertex ", index[i], " of ", a.count);
  }
  Tensor face_index = torch::stable::new_empty(a.vertices, {a.batch, height, width}, ScalarType::Int);
  Tensor depth = torch::stable::new_empty(a.vertices, {a.batch, height, width});
  Tensor barycentric = torch::stable::new_empty(a.vertices, {a.batch, height, width, 3});
  const cpu::RasterizeParams p{a.vertices.const_data_ptr<float>(),
                               index,
                               face_index.mutable_data_ptr<int32_t>(),
                               depth.mutable_data_ptr<float>(),
                               barycentric.mutable_data_ptr<float>(),
                               a.count,
                               a.num_faces,
                               int(height),
                               int(width),
                               a.batch < 16 && height >= 512 ? 8 : 1};
  torch::stable::parallel_for(0, a.batch * p.bands, 1,
                              [&](int64_t begin, int64_t end) { cpu::rasterize(p, begin, end); });
  return {face_index, depth, barycentric};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("rasterize", TORCH_BOX(&rasterize_cpu)); }

}  // namespace tore_fast
