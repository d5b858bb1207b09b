#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace tore_fast::cuda {

struct RasterizeParams {
  const float* vertices;      // [batch, num_vertices, 3]: x, y in pixels, depth
  const int32_t* faces;       // [num_faces, 3]
  unsigned long long* nearest;  // [batch, height, width] workspace: depth << 32 | face
  int32_t* face_index;        // [batch, height, width]
  float* depth;               // [batch, height, width]
  float* barycentric;         // [batch, height, width, 3]
  int64_t batch, num_vertices, num_faces;
  int height, width;
};

cudaError_t rasterize(const RasterizeParams& p, cudaStream_t stream);

}  // namespace tore_fast::cuda
