#include "fit_landmarks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"

#define TORE_FAST_NAME(name) name
#include "fit_landmarks_loops.h"

namespace tore_fast::cpu {
namespace {

// Bounds shared with the reference.
constexpr double kSmallDepth = 0.05, kMinDamping = 1e-5, kMaxDamping = 1e8, kDown = 0.4, kUp = 6,
                 kLargest = 1e6;
constexpr double kCameraStep = 0.4, kScaleLimit = 0.3;

void rank_update(double* h, int n, const int* at, int m, const double* rows, double* sum) {
  TORE_FAST_SIMD(fit_rank_update, h, n, at, m, rows, sum);
  fit_rank_update(h, n, at, m, rows, sum);
}

bool solve(double* h, int n, double* g) {
  TORE_FAST_SIMD(fit_solve, h, n, g);
  return fit_solve(h, n, g);
}

double finite_or_zero(double x) { return std::isfinite(x) ? x : 0; }

double clamp(double x, double limit) { return std::min(std::max(x, -limit), limit); }

// c = a b, 3 x 3
void times(const double* a, const double* b, double* c) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
}

// c = a^T b
void transposed_times(const double* a, const double* b, double* c) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c[3 * i + j] = a[i] * b[j] + a[3 + i] * b[3 + j] + a[6 + i] * b[6 + j];
}

void turn(const double* m, const double* v, double* out) {
  for (int i = 0; i < 3; ++i) out[i] = m[3 * i] * v[0] + m[3 * i + 1] * v[1] + m[3 * i + 2] * v[2];
}

double norm(const double* v) { return std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]); }

void skew(const double* v, double* k) {
  const double rows[9] = {0, -v[2], v[1], v[2], 0, -v[0], -v[1], v[0], 0};
  std::memcpy(k, rows, sizeof rows);
}

// I + a K + b K^2
void polynomial(const double* v, double a, double b, double* out) {
  double k[9], k2[9];
  skew(v, k);
  times(k, k, k2);
  for (int i = 0; i < 9; ++i) out[i] = (i % 4 == 0) + a * k[i] + b * k2[i];
}

void rotation_of(const double* v, double* out) {
  const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
  if (square < 1e-8) return polynomial(v, 1 - square / 6, 0.5 - square / 24, out);
  const double angle = std::sqrt(square);
  polynomial(v, std::sin(angle) / angle, (1 - std::cos(angle)) / square, out);
}

// Through the quaternion's largest component: stable near 0 and at half turns.
void log_of(const double* m, double* v) {
  const double squares[4] = {1 + m[0] + m[4] + m[8], 1 + m[0] - m[4] - m[8], 1 - m[0] + m[4] - m[8],
                             1 - m[0] - m[4] + m[8]};
  const double a = m[7] - m[5], b = m[2] - m[6], c = m[3] - m[1], d = m[3] + m[1], e = m[6] + m[2],
               f = m[7] + m[5];
  const double rows[4][4] = {
      {squares[0], a, b, c}, {a, squares[1], d, e}, {b, d, squares[2], f}, {c, e, f, squares[3]}};
  int best = 0;
  for (int i = 1; i < 4; ++i)
    if (squares[i] > squares[best]) best = i;
  const double* row = rows[best];
  const double length = std::sqrt(row[0] * row[0] + row[1] * row[1] + row[2] * row[2] + row[3] * row[3]);
  const double sign = row[0] < 0 ? -1 / length : 1 / length;
  const double q[4] = {row[0] * sign, row[1] * sign, row[2] * sign, row[3] * sign};
  const double sine = norm(q + 1);
  const double scale = sine < 1e-6 ? 2 : 2 * std::atan2(sine, q[0]) / sine;
  for (int i = 0; i < 3; ++i) v[i] = q[1 + i] * scale;
}

// d log(exp(v) exp(e)) / d e at e = 0
void log_jacobian(const double* v, double* out) {
  const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2], a = std::sqrt(square);
  const double f = square < 1e-4 ? 1.0 / 12 + square / 720 + square * square / 30240
                                 : 1 / square - std::cos(a / 2) / (std::sin(a / 2) * 2 * a);
  polynomial(v, 0.5, f, out);
}

// Gram-Schmidt on the columns; the identity where they span nothing or are not finite.
void proper_rotation(const double* m, double* out) {
  bool good = true;
  for (int i = 0; i < 9; ++i) good = good && std::isfinite(m[i]);
  double x[3] = {m[0], m[3], m[6]}, y[3] = {m[1], m[4], m[7]};
  const double length = norm(x);
  for (double& v : x) v /= std::max(length, 1e-12);
  const double along = x[0] * y[0] + x[1] * y[1] + x[2] * y[2];
  for (int i = 0; i < 3; ++i) y[i] -= along * x[i];
  const double height = norm(y);
  for (double& v : y) v /= std::max(height, 1e-12);
  if (!good || !(length > 1e-6) || !(height > 1e-6)) {
    for (int i = 0; i < 9; ++i) out[i] = i % 4 == 0;
    return;
  }
  const double z[3] = {x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]};
  for (int i = 0; i < 3; ++i) out[3 * i] = x[i], out[3 * i + 1] = y[i], out[3 * i + 2] = z[i];
}

// What does not depend on the person: which unknowns move which landmark.
struct Tree {
  std::vector<std::vector<int>> joints;     // of every landmark and the two of the centre, ascending
  std::vector<std::vector<char>> own;       // whether the joint is above the landmark itself
  std::vector<std::vector<char>> centre_a;  // ... above the first, the second landmark of the centre
  std::vector<std::vector<char>> centre_b;
  std::vector<std::vector<int>> at;  // their columns in the normal equations, then shape and camera

  explicit Tree(const FitLandmarksParams& p) {
    std::vector<std::vector<char>> above(p.points, std::vector<char>(p.joints, 0));
    for (int k = 0; k < p.points; ++k)
      for (int64_t j = p.attach[k]; j >= 0; j = p.parents[j]) above[k][j] = 1;
    const auto &a = above[p.centre_a], &b = above[p.centre_b];
    for (int k = 0; k < p.points; ++k) {
      joints.emplace_back(), own.emplace_back(), centre_a.emplace_back(), centre_b.emplace_back(),
          at.emplace_back();
      for (int j = 0; j < p.joints; ++j) {
        if (!above[k][j] && !a[j] && !b[j]) continue;
        joints[k].push_back(j), own[k].push_back(above[k][j]), centre_a[k].push_back(a[j]),
            centre_b[k].push_back(b[j]);
        for (int i = 0; i < 3; ++i) at[k].push_back(3 * j + i);
      }
      for (int i = 0; i < p.shapes + 4; ++i) at[k].push_back(3 * p.joints + i);
    }
  }
};

struct State {
  std::vector<double> rotations, betas, camera;
  // derived from the three above
  std::vector<double> world, joint, by_shape, landmark, landmark_by_shape, log, image, depth, r2, r3;
  double parts[kFitParts];
  double cost;

  State(int j, int n, int s)
      : rotations(9 * j),
        betas(s),
        camera(4),
        world(9 * j),
        joint(3 * j),
        by_shape(3 * j * s),
        landmark(3 * n),
        landmark_by_shape(3 * n * s),
        log(3 * j),
        image(2 * n),
        depth(n),
        r2(2 * n),
        r3(3 * n) {}
};

class Fit {
 public:
  explicit Fit(const FitLandmarksParams& params)
      : p(params),
        s(params.settings),
        tree(params),
        unknowns(3 * p.joints + p.shapes + 4),
        now(p.joints, p.points, p.shapes),
        trial(now),
        image(2 * p.points),
        weights(2 * p.points),
        world(3 * p.points),
        anchor(9 * p.joints),
        anchor_betas(p.shapes),
        bone(3 * p.joints),
        offset(3 * p.points),
        h(unknowns * unknowns),
        damped(h.size()),
        g(unknowns),
        step(unknowns),
        rows(5 * unknowns),
        sum(unknowns),
        jacobians(9 * p.joints) {}

  void run(int64_t person) {
    load(person);
    evaluate(now);
    if (!p.camera) {
      starting_camera();
      evaluate(now);
    }
    double damping = s.damping;
    bool fresh = true;
    for (int n = 0; n < p.steps; ++n) {
      if (fresh) normal_equations();
      const bool better = try_step(damping);
      if (better) std::swap(now, trial);
      damping = std::min(std::max(damping * (better ? kDown : kUp), kMinDamping), kMaxDamping);
      fresh = better;
    }
    store(person);
  }

 private:
  void load(int64_t b) {
    for (int k = 0; k < p.points; ++k) {
      const double* u = p.image + (b * p.points + k) * 2;
      const double* x = p.world + (b * p.points + k) * 3;
      const bool seen = std::isfinite(u[0]) && std::isfinite(u[1]);
      const bool solid = std::isfinite(x[0]) && std::isfinite(x[1]) && std::isfinite(x[2]);
      for (int i = 0; i < 2; ++i) {
        image[2 * k + i] = seen ? clamp(u[i], kLargest) : 0;
        const double w = std::max(finite_or_zero(p.weights[(b * p.points + k) * 2 + i]), 0.0);
        weights[2 * k + i] = (i == 0 ? seen : solid) ? w : 0;
      }
      for (int i = 0; i < 3; ++i) world[3 * k + i] = solid ? clamp(x[i], kLargest) : 0;
    }
    for (int j = 0; j < p.joints; ++j) {
      proper_rotation(p.rotations + (b * p.joints + j) * 9, &now.rotations[9 * j]);
      if (p.anchor) proper_rotation(p.anchor + (b * p.joints + j) * 9, &anchor[9 * j]);
    }
    for (int i = 0; i < p.shapes; ++i) {
      now.betas[i] = clamp(finite_or_zero(p.betas[b * p.shapes + i]), s.beta_limit);
      anchor_betas[i] = p.anchor_betas ? finite_or_zero(p.anchor_betas[b * p.shapes + i]) : 0;
    }
    for (int i = 0; i < 4; ++i) now.camera[i] = p.camera ? finite_or_zero(p.camera[b * 4 + i]) : 0;
    inv_focal = p.inv_focal ? finite_or_zero(p.inv_focal[b]) : 0;
    anchor_weight = !p.anchor ? 0 : p.anchor_weight ? std::max(finite_or_zero(p.anchor_weight[b]), 0.0) : 1;
  }

  void store(int64_t b) const {
    const auto put = [b](const std::vector<double>& from, double* to) {
      std::memcpy(to + b * from.size(), from.data(), from.size() * sizeof(double));
    };
    put(now.rotations, p.out_rotations), put(now.betas, p.out_betas), put(now.camera, p.out_camera);
    put(now.landmark, p.out_landmarks);
    std::memcpy(p.out_cost + b * kFitParts, now.parts, sizeof now.parts);
  }

  // Forward kinematics, residuals and cost of a state's rotations, betas and camera.
  void evaluate(State& q) {
    const int shapes = p.shapes;
    const auto shaped = [&](const double* base, const double* dirs, int count, std::vector<double>& out) {
      for (int i = 0; i < count; ++i) {
        double x = base[i];
        for (int c = 0; c < shapes; ++c) x += dirs[i * shapes + c] * q.betas[c];
        out[i] = x;
      }
    };
    const auto turned_dirs = [&](const double* m, const double* dirs, double* out) {
      for (int i = 0; i < 3; ++i)
        for (int c = 0; c < shapes; ++c)
          out[i * shapes + c] +=
              m[3 * i] * dirs[c] + m[3 * i + 1] * dirs[shapes + c] + m[3 * i + 2] * dirs[2 * shapes + c];
    };
    shaped(p.bones, p.bone_dirs, 3 * p.joints, bone);
    shaped(p.offsets, p.offset_dirs, 3 * p.points, offset);
    std::copy_n(q.rotations.begin(), 9, q.world.begin());
    std::fill_n(q.joint.begin(), 3, 0.0);
    std::fill_n(q.by_shape.begin(), 3 * shapes, 0.0);
    for (int j = 1; j < p.joints; ++j) {
      const int up = int(p.parents[j]);
      times(&q.world[9 * up], &q.rotations[9 * j], &q.world[9 * j]);
      double moved[3];
      turn(&q.world[9 * up], &bone[3 * j], moved);
      for (int i = 0; i < 3; ++i) q.joint[3 * j + i] = q.joint[3 * up + i] + moved[i];
      std::copy_n(&q.by_shape[3 * shapes * up], 3 * shapes, &q.by_shape[3 * shapes * j]);
      turned_dirs(&q.world[9 * up], p.bone_dirs + 3 * shapes * j, &q.by_shape[3 * shapes * j]);
    }
    for (int k = 0; k < p.points; ++k) {
      const int j = int(p.attach[k]);
      double moved[3];
      turn(&q.world[9 * j], &offset[3 * k], moved);
      for (int i = 0; i < 3; ++i) q.landmark[3 * k + i] = q.joint[3 * j + i] + moved[i];
      std::copy_n(&q.by_shape[3 * shapes * j], 3 * shapes, &q.landmark_by_shape[3 * shapes * k]);
      turned_dirs(&q.world[9 * j], p.offset_dirs + 3 * shapes * k, &q.landmark_by_shape[3 * shapes * k]);
    }
    for (int j = 1; j < p.joints; ++j) log_of(&q.rotations[9 * j], &q.log[3 * j]);
    residuals(q);
    costs(q);
  }

  void residuals(State& q) {
    const double scale = std::exp(q.camera[0]), size = std::exp(q.camera[3]);
    const double* a = &q.landmark[3 * p.centre_a];
    const double* b = &q.landmark[3 * p.centre_b];
    const double sigma[3] = {s.sigma_xy, s.sigma_xy, s.sigma_z};
    for (int k = 0; k < p.points; ++k) {
      const double* x = &q.landmark[3 * k];
      q.depth[k] = std::max(1 + inv_focal * scale * x[2], kSmallDepth);
      for (int i = 0; i < 2; ++i) {
        q.image[2 * k + i] = (scale * x[i] + q.camera[1 + i]) / q.depth[k];
        q.r2[2 * k + i] = (q.image[2 * k + i] - image[2 * k + i]) / s.sigma_point;
      }
      for (int i = 0; i < 3; ++i)
        q.r3[3 * k + i] = (x[i] - (a[i] + b[i]) / 2 - size * world[3 * k + i]) / sigma[i];
    }
  }

  static double square(const double* v, int n) {
    double out = 0;
    for (int i = 0; i < n; ++i) out += v[i] * v[i];
    return out;
  }

  void costs(State& q) {
    const double k2 = 2 * s.robust * s.robust;
    double* c = q.parts;
    std::fill_n(c, kFitParts, 0.0);
    for (int k = 0; k < p.points; ++k) {
      c[0] += weights[2 * k] * k2 * std::log1p(square(&q.r2[2 * k], 2) / k2);
      c[1] += s.world * weights[2 * k + 1] * k2 * std::log1p(square(&q.r3[3 * k], 3) / k2);
    }
    const int logs = 3 * (p.joints - 1);
    for (int i = 0; i < logs; ++i) {
      const double* row = p.precision + int64_t(i) * logs;
      double pull = 0;
      for (int j = 0; j < logs; ++j) pull += row[j] * (q.log[3 + j] - p.prior_mean[j]);
      c[2] += s.prior * (q.log[3 + i] - p.prior_mean[i]) * pull;
    }
    for (int i = 0; i < p.shapes; ++i)
      c[3] += s.shape * (q.betas[i] - anchor_betas[i]) * (q.betas[i] - anchor_betas[i]);
    c[4] = q.camera[3] * q.camera[3] / (s.sigma_scale * s.sigma_scale);
    for (size_t l = 0; l + 2 < p.limits.size(); l += 3) {
      const double r = limit(q, l);
      c[5] += r * r;
    }
    if (anchor_weight > 0)
      for (int j = 0; j < p.joints; ++j) {
        double back[9], v[3];
        transposed_times(&anchor[9 * j], &q.rotations[9 * j], back);
        log_of(back, v);
        const double sigma = j ? s.sigma_anchor : s.sigma_root;
        c[6] += anchor_weight * square(v, 3) / (sigma * sigma);
      }
    q.cost = 0;
    for (int i = 0; i < kFitParts; ++i) q.cost += c[i];
  }

  double limit(const State& q, size_t l) const {
    return std::min(p.limits[l + 2] * q.log[3 * p.limits[l] + p.limits[l + 1]], 0.0) / s.sigma_limit;
  }

  // Least-squares weak perspective of the start pose.
  void starting_camera() {
    double total = 0, mean[2] = {0, 0}, target[2] = {0, 0}, both = 0, own = 0;
    for (int k = 0; k < p.points; ++k) {
      total += weights[2 * k];
      for (int i = 0; i < 2; ++i) {
        mean[i] += weights[2 * k] * now.landmark[3 * k + i];
        target[i] += weights[2 * k] * image[2 * k + i];
      }
    }
    total = std::max(total, 1e-9);
    for (int i = 0; i < 2; ++i) mean[i] /= total, target[i] /= total;
    for (int k = 0; k < p.points; ++k)
      for (int i = 0; i < 2; ++i) {
        const double a = now.landmark[3 * k + i] - mean[i], b = image[2 * k + i] - target[i];
        both += weights[2 * k] * a * b, own += weights[2 * k] * a * a;
      }
    const double scale = std::min(std::max(both / std::max(own, 1e-9), 0.02), 20.0);
    now.camera = {std::log(scale), target[0] - scale * mean[0], target[1] - scale * mean[1], 0};
  }

  // Gauss-Newton matrix (lower triangle) and half the gradient of the cost at `now`.
  void normal_equations() {
    const int turns = 3 * p.joints, n = unknowns, shapes = p.shapes;
    const State& q = now;
    const double k2 = 2 * s.robust * s.robust;
    std::fill(h.begin(), h.end(), 0.0);
    std::fill(g.begin(), g.end(), 0.0);
    for (int k = 0; k < p.points; ++k) {
      const double w2 = weights[2 * k] / (1 + square(&q.r2[2 * k], 2) / k2);
      const double w3 = s.world * weights[2 * k + 1] / (1 + square(&q.r3[3 * k], 3) / k2);
      if (w2 > 0 || w3 > 0) add_landmark(k, std::sqrt(w2), std::sqrt(w3));
    }
    for (int j = 1; j < p.joints; ++j) log_jacobian(&q.log[3 * j], &jacobians[9 * j]);
    add_prior();
    for (int i = 0; i < shapes; ++i) {
      h[int64_t(turns + i) * (n + 1)] += s.shape;
      g[turns + i] += s.shape * (q.betas[i] - anchor_betas[i]);
    }
    const double stiff = 1 / (s.sigma_scale * s.sigma_scale);
    h[int64_t(n) * n - 1] += stiff;
    g[n - 1] += stiff * q.camera[3];
    for (size_t l = 0; l + 2 < p.limits.size(); l += 3) {
      const double r = limit(q, l);
      if (!(r < 0)) continue;
      const int j = p.limits[l];
      double row[3];
      for (int i = 0; i < 3; ++i)
        row[i] = p.limits[l + 2] * jacobians[9 * j + 3 * p.limits[l + 1] + i] / s.sigma_limit;
      add_block(j, row, r);
    }
    if (anchor_weight > 0)
      for (int j = 0; j < p.joints; ++j) {
        double back[9], v[3], jac[9];
        transposed_times(&anchor[9 * j], &q.rotations[9 * j], back);
        log_of(back, v);
        log_jacobian(v, jac);
        const double stiffness = std::sqrt(anchor_weight) / (j ? s.sigma_anchor : s.sigma_root);
        for (int i = 0; i < 3; ++i) {
          const double row[3] = {stiffness * jac[3 * i], stiffness * jac[3 * i + 1],
                                 stiffness * jac[3 * i + 2]};
          add_block(j, row, stiffness * v[i]);
        }
      }
  }

  // One residual r that depends on joint j's turn alone.
  void add_block(int j, const double* row, double r) {
    for (int a = 0; a < 3; ++a) {
      g[3 * j + a] += row[a] * r;
      for (int b = 0; b <= a; ++b) h[int64_t(3 * j + a) * unknowns + 3 * j + b] += row[a] * row[b];
    }
  }

  void add_landmark(int k, double root2, double root3) {
    const State& q = now;
    const auto& joints = tree.joints[k];
    const auto& at = tree.at[k];
    const int m = int(at.size()), shapes = p.shapes, turns = 3 * int(joints.size());
    const double* x = &q.landmark[3 * k];
    const double scale = std::exp(q.camera[0]), size = std::exp(q.camera[3]), depth = q.depth[k];
    const double slope = depth > kSmallDepth ? inv_focal * scale : 0;
    const double in2 = root2 / (s.sigma_point * depth);
    const double in3[3] = {root3 / s.sigma_xy, root3 / s.sigma_xy, root3 / s.sigma_z};
    std::fill_n(rows.begin(), 5 * m, 0.0);
    double* row[5];
    for (int r = 0; r < 5; ++r) row[r] = &rows[r * m];
    // d is the landmark's derivative by one unknown, c that of the centre
    const auto put = [&](int column, const double* d, const double* c) {
      for (int i = 0; i < 2; ++i) row[i][column] = in2 * (scale * d[i] - q.image[2 * k + i] * slope * d[2]);
      for (int i = 0; i < 3; ++i) row[2 + i][column] = in3[i] * (d[i] - c[i]);
    };
    const double *ca = &q.landmark[3 * p.centre_a], *cb = &q.landmark[3 * p.centre_b];
    for (size_t n = 0; n < joints.size(); ++n) {
      const int j = joints[n];
      const double* place = &q.joint[3 * j];
      double arm[3], middle[3];
      for (int i = 0; i < 3; ++i) {
        arm[i] = tree.own[k][n] ? x[i] - place[i] : 0;
        middle[i] =
            ((tree.centre_a[k][n] ? ca[i] - place[i] : 0) + (tree.centre_b[k][n] ? cb[i] - place[i] : 0)) / 2;
      }
      for (int axis = 0; axis < 3; ++axis) {
        const double e[3] = {q.world[9 * j + axis], q.world[9 * j + 3 + axis], q.world[9 * j + 6 + axis]};
        const double d[3] = {e[1] * arm[2] - e[2] * arm[1], e[2] * arm[0] - e[0] * arm[2],
                             e[0] * arm[1] - e[1] * arm[0]};
        const double c[3] = {e[1] * middle[2] - e[2] * middle[1], e[2] * middle[0] - e[0] * middle[2],
                             e[0] * middle[1] - e[1] * middle[0]};
        put(3 * int(n) + axis, d, c);
      }
    }
    const double *da = &q.landmark_by_shape[3 * shapes * p.centre_a],
                 *db = &q.landmark_by_shape[3 * shapes * p.centre_b];
    const double* dk = &q.landmark_by_shape[3 * shapes * k];
    for (int b = 0; b < shapes; ++b) {
      const double d[3] = {dk[b], dk[shapes + b], dk[2 * shapes + b]};
      const double c[3] = {(da[b] + db[b]) / 2, (da[shapes + b] + db[shapes + b]) / 2,
                           (da[2 * shapes + b] + db[2 * shapes + b]) / 2};
      put(turns + b, d, c);
    }
    for (int i = 0; i < 2; ++i) {
      row[i][m - 4] = in2 * (scale * x[i] - q.image[2 * k + i] * slope * x[2]);
      row[i][m - 3 + i] = in2;
    }
    for (int i = 0; i < 3; ++i) row[2 + i][m - 1] = -in3[i] * size * world[3 * k + i];
    const double residual[5] = {root2 * q.r2[2 * k], root2 * q.r2[2 * k + 1], root3 * q.r3[3 * k],
                                root3 * q.r3[3 * k + 1], root3 * q.r3[3 * k + 2]};
    for (int a = 0; a < m; ++a)
      for (int r = 0; r < 5; ++r) g[at[a]] += row[r][a] * residual[r];
    rank_update(h.data(), unknowns, at.data(), m, rows.data(), sum.data());
  }

  void add_prior() {
    const int logs = 3 * (p.joints - 1);
    for (int i = 0; i < logs; ++i) {
      const double* row = p.precision + int64_t(i) * logs;
      double pull = 0;
      for (int j = 0; j < logs; ++j) pull += row[j] * (now.log[3 + j] - p.prior_mean[j]);
      const double* jac = &jacobians[9 * (i / 3 + 1) + 3 * (i % 3)];  // row i % 3 of the joint's Jacobian
      for (int a = 0; a < 3; ++a) g[3 + 3 * (i / 3) + a] += s.prior * jac[a] * pull;
    }
    for (int i = 0; i + 1 < p.joints; ++i)
      for (int j = 0; j <= i; ++j) {
        double block[9], left[9], both[9];
        for (int a = 0; a < 3; ++a)
          for (int b = 0; b < 3; ++b)
            block[3 * a + b] = s.prior * p.precision[int64_t(3 * i + a) * logs + 3 * j + b];
        transposed_times(&jacobians[9 * (i + 1)], block, left);
        times(left, &jacobians[9 * (j + 1)], both);
        for (int a = 0; a < 3; ++a)
          for (int b = 0; b < (i == j ? a + 1 : 3); ++b)
            h[int64_t(3 + 3 * i + a) * unknowns + 3 + 3 * j + b] += both[3 * a + b];
      }
  }

  bool try_step(double damping) {
    const int n = unknowns, turns = 3 * p.joints;
    damped = h;
    step = g;
    for (int i = 0; i < n; ++i) damped[int64_t(i) * (n + 1)] += damping * h[int64_t(i) * (n + 1)] + 1e-6;
    if (!solve(damped.data(), n, step.data())) return false;
    for (int j = 0; j < p.joints; ++j) {
      double v[3] = {step[3 * j], step[3 * j + 1], step[3 * j + 2]}, turned_by[9];
      const double shorter = std::min(s.max_turn / std::max(norm(v), 1e-12), 1.0);
      for (double& x : v) x *= shorter;
      rotation_of(v, turned_by);
      times(&now.rotations[9 * j], turned_by, &trial.rotations[9 * j]);
    }
    for (int i = 0; i < p.shapes; ++i) trial.betas[i] = clamp(now.betas[i] + step[turns + i], s.beta_limit);
    trial.camera[0] = now.camera[0] + clamp(step[n - 4], kCameraStep);
    for (int i = 1; i < 3; ++i) trial.camera[i] = now.camera[i] + step[n - 4 + i];
    trial.camera[3] = clamp(now.camera[3] + step[n - 1], kScaleLimit);
    evaluate(trial);
    return trial.cost <= now.cost;  // false for NaN
  }

  const FitLandmarksParams& p;
  const FitSettings& s;
  const Tree tree;
  const int unknowns;
  State now, trial;
  std::vector<double> image, weights, world, anchor, anchor_betas, bone, offset;
  double inv_focal = 0, anchor_weight = 0;
  std::vector<double> h, damped, g, step, rows, sum, jacobians;
};

}  // namespace

void fit_landmarks(const FitLandmarksParams& p, int64_t begin, int64_t end) {
  Fit fit(p);
  for (int64_t b = begin; b < end; ++b) fit.run(b);
}

}  // namespace tore_fast::cpu
