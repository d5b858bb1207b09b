// Z-buffer of triangle meshes: per pixel the nearest face, its depth and barycentric weights. float32, contiguous.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

struct RasterizeParams {
  const float* vertices;  // [batch, num_vertices, 3]: x, y in pixels, depth
  const int32_t* faces;   // [num_faces, 3], checked by the caller
  int32_t* face_index;    // [batch, height, width]
  float* depth;           // [batch, height, width]
  float* barycentric;     // [batch, height, width, 3]
  int64_t num_vertices, num_faces;
  int height, width;
  int bands;  // horizontal bands an image is cut into
};

// Work units [begin, end) of the flattened (image, band) range.
void rasterize(const RasterizeParams& p, int64_t begin, int64_t end);

}  // namespace tore_fast::cpu
