// Vertex-subset quadric edge collapse: every collapse moves one vertex onto a neighbour that keeps its place,
// so each coarse mesh is made of original vertices and the coarse levels are nested. Host-side, no torch.
#pragma once
#include <cstdint>
#include <vector>

namespace tore_fast::cpu {

struct DecimatedLevel {
  std::vector<int32_t> kept;   // original vertex indices, ascending
  std::vector<int32_t> faces;  // [3 * faces], indices into `kept`, orientation of the input
};

// vertices [num_vertices, 3], faces [num_faces, 3]; targets strictly falling vertex counts.
// The surface may have borders; their loops are kept and thinned along themselves. Deterministic: equal costs
// go to the lower vertex index. Throws std::invalid_argument for a mesh that is no oriented manifold or a
// target out of reach without changing the topology.
std::vector<DecimatedLevel> decimate(const double* vertices, int64_t num_vertices, const int32_t* faces,
                                     int64_t num_faces, const std::vector<int64_t>& targets);

}  // namespace tore_fast::cpu
