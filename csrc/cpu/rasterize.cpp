// A face of a body mesh covers about one pixel, so the time goes into set-up and rejection, not into filling: one plain
// loop over faces and their bounding boxes, and threads over images (bands of rows when there are few images).
#include "rasterize.h"

#include <limits>
#include <vector>

#include "raster_edges.h"

namespace tore_fast::cpu {
namespace {

void draw(const raster::Triangle& t, int32_t face, int width, int32_t* face_index, float* depth, float* barycentric) {
  const float inverse_area = 1.f / float(t.area);
  raster::Edge edge[3];
  int64_t row_value[3];
  for (int k = 0; k < 3; ++k) {
    edge[k] = raster::edge(t, k);
    row_value[k] = edge[k].at_origin + t.x_min * edge[k].step_x + t.y_min * edge[k].step_y;
  }
  for (int row = t.y_min; row <= t.y_max; ++row) {
    int64_t e[3] = {row_value[0], row_value[1], row_value[2]};
    for (int column = t.x_min; column <= t.x_max; ++column) {
      if (e[0] >= edge[0].limit && e[1] >= edge[1].limit && e[2] >= edge[2].limit) {
        float w[3];
        raster::weights(e, inverse_area, w);
        const float z = raster::depth_at(t, w);
        const int64_t pixel = int64_t(row) * width + column;
        if (z < depth[pixel]) {  // faces come in ascending order: the lower index keeps a tie
          depth[pixel] = z;
          face_index[pixel] = face;
          for (int k = 0; k < 3; ++k) barycentric[3 * pixel + k] = w[k];
        }
      }
      for (int k = 0; k < 3; ++k) e[k] += edge[k].step_x;
    }
    for (int k = 0; k < 3; ++k) row_value[k] += edge[k].step_y;
  }
}

}  // namespace

void rasterize(const RasterizeParams& p, int64_t begin, int64_t end) {
  const int64_t pixels = int64_t(p.height) * p.width;
  std::vector<raster::Corner> corners(p.num_vertices);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.bands, band = unit % p.bands;
    const int row_begin = int(p.height * band / p.bands), row_end = int(p.height * (band + 1) / p.bands);
    const float* vertices = p.vertices + b * p.num_vertices * 3;
    int32_t* face_index = p.face_index + b * pixels;
    float* depth = p.depth + b * pixels;
    float* barycentric = p.barycentric + b * pixels * 3;
    for (int64_t i = int64_t(row_begin) * p.width; i < int64_t(row_end) * p.width; ++i) {
      face_index[i] = -1;
      depth[i] = std::numeric_limits<float>::infinity();
      barycentric[3 * i] = barycentric[3 * i + 1] = barycentric[3 * i + 2] = 0.f;
    }
    for (int64_t v = 0; v < p.num_vertices; ++v) corners[v] = raster::snap(vertices + 3 * v);
    for (int64_t f = 0; f < p.num_faces; ++f) {
      const int32_t* face = p.faces + 3 * f;
      raster::Triangle t;
      if (raster::setup(corners[face[0]], corners[face[1]], corners[face[2]], p.width, row_begin, row_end, t)) {
        draw(t, int32_t(f), p.width, face_index, depth, barycentric);
      }
    }
  }
}

}  // namespace tore_fast::cpu
