// Garland & Heckbert, "Surface Simplification Using Quadric Error Metrics" (SIGGRAPH 1997), restricted to
// half-edge collapses. One heap entry per vertex (its cheapest allowed collapse); entries go stale when the
// one-ring changes.
#include "decimate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <queue>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace tore_fast::cpu {
namespace {

using Vec3 = std::array<double, 3>;

Vec3 operator-(const Vec3& a, const Vec3& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
double dot(const Vec3& a, const Vec3& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
Vec3 cross(const Vec3& a, const Vec3& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

// Sum of weighted squared distances to planes, as the upper triangle of a symmetric 4x4 matrix.
struct Quadric {
  std::array<double, 10> q{};

  void add_plane(const Vec3& n, double d, double w) {
    const double p[4] = {n[0], n[1], n[2], d};
    for (int i = 0, k = 0; i < 4; ++i)
      for (int j = i; j < 4; ++j) q[k++] += w * p[i] * p[j];
  }
  void add(const Quadric& o) {
    for (int k = 0; k < 10; ++k) q[k] += o.q[k];
  }
  double at(const Vec3& p) const {
    const double x = p[0], y = p[1], z = p[2];
    return q[0] * x * x + 2 * q[1] * x * y + 2 * q[2] * x * z + 2 * q[3] * x + q[4] * y * y +
           2 * q[5] * y * z + 2 * q[6] * y + q[7] * z * z + 2 * q[8] * z + q[9];
  }
};

constexpr double kMinCosine = 0.2;    // a face may turn by at most 78 degrees in one collapse
constexpr double kGoodShape = 0.3;    // triangles thinner than this (1 = equilateral) make a collapse dearer
constexpr double kBorderWeight = 10;  // of the planes standing on border edges
constexpr double kLengthWeight =
    1e-3;  // share of squared edge length in the cost: spreads vertices on flat parts

struct Candidate {
  double cost;
  int32_t from, to;
  int64_t stamp;
  bool operator>(const Candidate& o) const { return cost != o.cost ? cost > o.cost : from > o.from; }
};

class Decimator {
 public:
  Decimator(const double* vertices, int64_t num_vertices, const int32_t* faces, int64_t num_faces)
      : position_(num_vertices),
        quadric_(num_vertices),
        ring_(num_vertices),
        border_(num_vertices, 0),
        alive_(num_vertices, 1),
        stamp_(num_vertices, 0),
        face_(num_faces),
        face_alive_(num_faces, 1),
        count_(num_vertices) {
    for (int64_t v = 0; v < num_vertices; ++v)
      for (int c = 0; c < 3; ++c) {
        position_[v][c] = vertices[3 * v + c];
        if (!std::isfinite(position_[v][c])) fail("vertex " + std::to_string(v) + " is not finite");
      }
    for (int64_t f = 0; f < num_faces; ++f) {
      for (int c = 0; c < 3; ++c) {
        const int32_t v = faces[3 * f + c];
        if (v < 0 || v >= num_vertices)
          fail("face " + std::to_string(f) + " names vertex " + std::to_string(v) + " of " +
               std::to_string(num_vertices));
        face_[f][c] = v;
        ring_[v].push_back(int32_t(f));
      }
      if (face_[f][0] == face_[f][1] || face_[f][1] == face_[f][2] || face_[f][2] == face_[f][0])
        fail("face " + std::to_string(f) + " names one vertex twice");
    }
    check_manifold_and_add_borders(num_vertices);
    double area_sum = 0;
    for (const auto& f : face_) {
      Vec3 n = normal(position_[f[0]], position_[f[1]], position_[f[2]]);
      const double twice_area = std::sqrt(dot(n, n));
      if (twice_area <= 0) continue;
      for (double& c : n) c /= twice_area;
      area_sum += twice_area / 2;
      for (int32_t v : f) quadric_[v].add_plane(n, -dot(n, position_[f[0]]), twice_area / 2);
    }
    length_scale_ = kLengthWeight * area_sum / std::max<int64_t>(num_faces, 1);
    refill();
  }

  void run_to(int64_t target) {
    while (count_ > target) {
      if (heap_.empty()) {
        if (!check_flips_)
          fail("cannot go below " + std::to_string(count_) + " vertices (asked: " + std::to_string(target) +
               ") without changing the topology");
        check_flips_ = false;  // last resort for very coarse levels: shape may suffer, topology may not
        refill();
        continue;
      }
      const Candidate c = heap_.top();
      heap_.pop();
      if (alive_[c.from] && c.stamp == stamp_[c.from]) collapse(c.from, c.to);
    }
  }

  DecimatedLevel snapshot() const {
    DecimatedLevel level;
    std::vector<int32_t> local(alive_.size(), -1);
    for (size_t v = 0; v < alive_.size(); ++v)
      if (alive_[v]) {
        local[v] = int32_t(level.kept.size());
        level.kept.push_back(int32_t(v));
      }
    for (size_t f = 0; f < face_.size(); ++f)
      if (face_alive_[f])
        for (int32_t v : face_[f]) level.faces.push_back(local[v]);
    return level;
  }

 private:
  [[noreturn]] static void fail(const std::string& what) { throw std::invalid_argument("decimate: " + what); }
  static Vec3 normal(const Vec3& a, const Vec3& b, const Vec3& c) { return cross(b - a, c - a); }

  void check_manifold_and_add_borders(int64_t num_vertices) {
    std::unordered_map<int64_t, int32_t> half_edges;  // directed edge -> face
    half_edges.reserve(face_.size() * 3);
    for (size_t f = 0; f < face_.size(); ++f)
      for (int c = 0; c < 3; ++c) {
        const int64_t key = face_[f][c] * num_vertices + face_[f][(c + 1) % 3];
        if (!half_edges.emplace(key, int32_t(f)).second)
          fail("edge " + std::to_string(face_[f][c]) + "->" + std::to_string(face_[f][(c + 1) % 3]) +
               " belongs to two faces: the mesh must be an oriented manifold");
      }
    for (size_t f = 0; f < face_.size(); ++f)
      for (int c = 0; c < 3; ++c) {
        const int32_t a = face_[f][c], b = face_[f][(c + 1) % 3];
        if (half_edges.count(b * num_vertices + a)) continue;
        border_[a] = border_[b] = 1;
        const Vec3 edge = position_[b] - position_[a];
        const Vec3 n = normal(position_[face_[f][0]], position_[face_[f][1]], position_[face_[f][2]]);
        Vec3 side = cross(edge, n);
        const double length = std::sqrt(dot(side, side));
        if (length <= 0) continue;
        for (double& s : side) s /= length;
        const double d = -dot(side, position_[a]), w = kBorderWeight * dot(edge, edge);
        quadric_[a].add_plane(side, d, w);
        quadric_[b].add_plane(side, d, w);
      }
    for (int64_t v = 0; v < num_vertices; ++v) {
      if (ring_[v].empty()) fail("vertex " + std::to_string(v) + " belongs to no face");
      // one fan: V - E + F of the ring; a closed fan has as many neighbours as faces, an open one has one
      // more
      const size_t n = neighbours(int32_t(v)).size();
      if (n != ring_[v].size() + (border_[v] ? 1 : 0) || !single_fan(int32_t(v)))
        fail("the faces around vertex " + std::to_string(v) +
             " are no single fan: the mesh must be a manifold");
    }
  }

  // True when the faces around v hang together through edges at v.
  bool single_fan(int32_t v) const {
    std::vector<int32_t> open = {ring_[v][0]}, seen = open;
    while (!open.empty()) {
      const auto f = face_[open.back()];
      open.pop_back();
      for (int32_t g : ring_[v]) {
        if (std::find(seen.begin(), seen.end(), g) != seen.end()) continue;
        for (int32_t a : f)
          if (a != v && std::find(face_[g].begin(), face_[g].end(), a) != face_[g].end()) {
            seen.push_back(g);
            open.push_back(g);
            break;
          }
      }
    }
    return seen.size() == ring_[v].size();
  }

  std::vector<int32_t> neighbours(int32_t v) const {  // ascending
    std::vector<int32_t> out;
    for (int32_t f : ring_[v])
      for (int32_t a : face_[f])
        if (a != v) out.push_back(a);
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
  }

  // Link condition: the collapse keeps the surface a manifold of the same topology.
  bool keeps_topology(int32_t u, int32_t v, const std::vector<int32_t>& around_u) const {
    std::vector<int32_t> opposite;  // third vertices of the faces on edge u-v
    for (int32_t f : ring_[u]) {
      const auto& t = face_[f];
      if (t[0] != v && t[1] != v && t[2] != v) continue;
      opposite.push_back(t[0] + t[1] + t[2] - u - v);
    }
    if (border_[u] && (!border_[v] || opposite.size() != 1))
      return false;  // borders slide along themselves only
    const std::vector<int32_t> around_v = neighbours(v);
    std::vector<int32_t> common;
    std::set_intersection(around_u.begin(), around_u.end(), around_v.begin(), around_v.end(),
                          std::back_inserter(common));
    if (common.size() != opposite.size()) return false;
    for (int32_t w : opposite)
      if (ring_[w].size() <= (border_[w] ? 1u : 3u))
        return false;                          // w would lose its last face, or fold shut
    return ring_[u].size() > opposite.size();  // something must be left of the component
  }

  // Cost of moving u onto v; infinity where it is not allowed.
  double cost(int32_t u, int32_t v) const {
    double worst_shape = 1;
    for (int32_t f : ring_[u]) {
      const auto& t = face_[f];
      if (t[0] == v || t[1] == v || t[2] == v) continue;
      Vec3 p[3];
      for (int c = 0; c < 3; ++c) p[c] = position_[t[c] == u ? v : t[c]];
      const Vec3 now = normal(p[0], p[1], p[2]);
      const double area = std::sqrt(dot(now, now));
      if (check_flips_) {
        const Vec3 before = normal(position_[t[0]], position_[t[1]], position_[t[2]]);
        if (dot(now, before) <= kMinCosine * area * std::sqrt(dot(before, before)))
          return std::numeric_limits<double>::infinity();
      }
      const Vec3 e0 = p[1] - p[0], e1 = p[2] - p[1], e2 = p[0] - p[2];
      const double edges = dot(e0, e0) + dot(e1, e1) + dot(e2, e2);
      worst_shape = std::min(worst_shape, edges > 0 ? 2 * std::sqrt(3.0) * area / edges : 0.0);
    }
    Quadric q = quadric_[u];
    q.add(quadric_[v]);
    const Vec3 edge = position_[u] - position_[v];
    const double error = std::max(q.at(position_[v]), 0.0) + length_scale_ * dot(edge, edge);
    return error / std::max(std::min(worst_shape / kGoodShape, 1.0), 1e-3);
  }

  void push_best(int32_t u) {
    const int64_t stamp = ++stamp_[u];
    const std::vector<int32_t> around = neighbours(u);
    Candidate best{std::numeric_limits<double>::infinity(), u, -1, stamp};
    for (int32_t v : around) {
      const double c = cost(u, v);
      if (c < best.cost && keeps_topology(u, v, around)) best = {c, u, v, stamp};
    }
    if (best.to >= 0) heap_.push(best);
  }

  void refill() {
    for (size_t v = 0; v < alive_.size(); ++v)
      if (alive_[v]) push_best(int32_t(v));
  }

  void collapse(int32_t u, int32_t v) {
    for (int32_t f : ring_[u]) {
      auto& t = face_[f];
      if (t[0] == v || t[1] == v || t[2] == v) {
        face_alive_[f] = 0;
        for (int32_t w : t)
          if (w != u) ring_[w].erase(std::find(ring_[w].begin(), ring_[w].end(), f));
      } else {
        std::replace(t.begin(), t.end(), u, v);
        ring_[v].push_back(f);
      }
    }
    quadric_[v].add(quadric_[u]);
    ring_[u].clear();
    alive_[u] = 0;
    --count_;
    push_best(v);
    for (int32_t w : neighbours(v)) push_best(w);
  }

  std::vector<Vec3> position_;
  std::vector<Quadric> quadric_;
  std::vector<std::vector<int32_t>> ring_;  // live faces around each vertex
  std::vector<char> border_, alive_;
  std::vector<int64_t> stamp_;
  std::vector<std::array<int32_t, 3>> face_;
  std::vector<char> face_alive_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> heap_;
  int64_t count_;
  double length_scale_ = 0;
  bool check_flips_ = true;
};

}  // namespace

std::vector<DecimatedLevel> decimate(const double* vertices, int64_t num_vertices, const int32_t* faces,
                                     int64_t num_faces, const std::vector<int64_t>& targets) {
  int64_t last = num_vertices + 1;
  for (int64_t t : targets) {
    if (t < 3 || t >= last)
      throw std::invalid_argument("decimate: targets must fall strictly from at most " +
                                  std::to_string(num_vertices) + " to at least 3, got " + std::to_string(t));
    last = t;
  }
  Decimator mesh(vertices, num_vertices, faces, num_faces);
  std::vector<DecimatedLevel> levels;
  for (int64_t t : targets) {
    mesh.run_to(t);
    levels.push_back(mesh.snapshot());
  }
  return levels;
}

}  // namespace tore_fast::cpu
