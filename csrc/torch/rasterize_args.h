// Checks of rasterize's arguments, shared by the CPU and CUDA bindings.
#pragma once
#include "stable.h"

namespace tore_fast {

struct RasterizeArgs {
  Tensor vertices, faces;
  int64_t batch, count, num_faces;

  RasterizeArgs(const Tensor& vertices_in, const Tensor& faces_in, int64_t height, int64_t width)
      : vertices(checked(vertices_in, ScalarType::Float, 3, "rasterize: vertices_px")),
        faces(checked(faces_in, ScalarType::Int, 2, "rasterize: faces", vertices_in)) {
    STD_TORCH_CHECK(vertices.size(2) == 3 && faces.size(1) == 3, "rasterize: last dimensions must be 3");
    STD_TORCH_CHECK(height > 0 && width > 0 && height <= 1 << 15 && width <= 1 << 15, "rasterize: bad image size");
    batch = vertices.size(0), count = vertices.size(1), num_faces = faces.size(0);
    STD_TORCH_CHECK(num_faces < int64_t(1) << 31, "rasterize: too many faces");  // they are numbered in int32
  }
};

}  // namespace tore_fast
