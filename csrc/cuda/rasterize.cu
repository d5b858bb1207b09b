// Two passes. Faces: one thread per (image, face) walks the face's few pixels and keeps the minimum of
// depth << 32 | face by a 64-bit atomicMin, which is independent of the order of arrival: nearest first, lower face on a
// tie. Pixels: one thread per pixel reads the winner and works out its weights again (cheaper than storing them).
// A face that fills the image is walked by one thread: right for body meshes, slow for two big triangles.
#include "../cpu/raster_edges.h"
#include "common.cuh"
#include "rasterize.h"

namespace tore_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned long long kEmpty = ~0ull;

// Unsigned order of the result = order of the floats; -0 and +0 are one depth.
__device__ __forceinline__ unsigned ordered(float z) {
  const unsigned bits = __float_as_uint(z == 0.f ? 0.f : z);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ bool load(const RasterizeParams& p, int64_t b, int64_t f, raster::Triangle& t) {
  const float* v = p.vertices + b * p.num_vertices * 3;
  const int32_t* face = p.faces + 3 * f;
  for (int k = 0; k < 3; ++k) {
    if (face[k] < 0 || face[k] >= p.num_vertices) return false;  // the host cannot check indices without a sync
  }
  return raster::setup(raster::snap(v + 3 * int64_t(face[0])), raster::snap(v + 3 * int64_t(face[1])),
                       raster::snap(v + 3 * int64_t(face[2])), p.width, 0, p.height, t);
}

__global__ void __launch_bounds__(kThreads) rasterize_face_kernel(const RasterizeParams p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.num_faces) return;
  const int64_t b = i / p.num_faces, f = i % p.num_faces;
  raster::Triangle t;
  if (!load(p, b, f, t)) return;
  unsigned long long* nearest = p.nearest + b * p.height * p.width;
  const float inverse_area = 1.f / float(t.area);
  const raster::Edge edge[3] = {raster::edge(t, 0), raster::edge(t, 1), raster::edge(t, 2)};
  for (int row = t.y_min; row <= t.y_max; ++row) {
    for (int column = t.x_min; column <= t.x_max; ++column) {
      int64_t e[3];
      bool inside = true;
      for (int k = 0; k < 3; ++k) {
        e[k] = edge[k].at_origin + column * edge[k].step_x + row * edge[k].step_y;
        inside = inside && e[k] >= edge[k].limit;
      }
      if (!inside) continue;
      float w[3];
      raster::weights(e, inverse_area, w);
      const float z = raster::depth_at(t, w);
      const unsigned long long key = static_cast<unsigned long long>(ordered(z)) << 32 | static_cast<unsigned>(f);
      atomicMin(nearest + int64_t(row) * p.width + column, key);
    }
  }
}

__global__ void __launch_bounds__(kThreads) rasterize_pixel_kernel(const RasterizeParams p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pixels = int64_t(p.height) * p.width;
  if (i >= p.batch * pixels) return;
  const unsigned long long key = p.nearest[i];
  float z = INFINITY, w[3] = {0.f, 0.f, 0.f};
  int32_t face = -1;
  if (key != kEmpty) {
    face = int32_t(key & 0xffffffffu);
    const int row = int(i % pixels / p.width), column = int(i % pixels % p.width);
    raster::Triangle t;
    load(p, i / pixels, face, t);
    int64_t e[3];
    for (int k = 0; k < 3; ++k) {
      const raster::Edge edge = raster::edge(t, k);
      e[k] = edge.at_origin + column * edge.step_x + row * edge.step_y;
    }
    raster::weights(e, 1.f / float(t.area), w);
    z = raster::depth_at(t, w);
  }
  p.face_index[i] = face;
  p.depth[i] = z;
  for (int k = 0; k < 3; ++k) p.barycentric[3 * i + k] = w[k];
}

}  // namespace

cudaError_t rasterize(const RasterizeParams& p, cudaStream_t stream) {
  const int64_t pixels = p.batch * p.height * p.width;
  if (pixels == 0) return cudaSuccess;
  const cudaError_t cleared = cudaMemsetAsync(p.nearest, 0xff, pixels * sizeof(unsigned long long), stream);
  if (cleared != cudaSuccess) return cleared;
  if (p.num_faces > 0) {
    TF_LAUNCH(rasterize_face_kernel, unsigned(cdiv(p.batch * p.num_faces, kThreads)), kThreads, 0, stream, p);
    const cudaError_t launched = cudaGetLastError();
    if (launched != cudaSuccess) return launched;
  }
  TF_LAUNCH(rasterize_pixel_kernel, unsigned(cdiv(pixels, kThreads)), kThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
