// A posed body out of landmarks: damped Gauss-Newton steps, one person after the other, float64, contiguous.
// The maths and the names are those of tore_fast/ops/reference/fit_landmarks.py.
#pragma once
#include <cstdint>
#include <vector>

namespace tore_fast::cpu {

// In the order of FitSettings in tore_fast/ops/fit_landmarks.py.
struct FitSettings {
  double sigma_point, sigma_xy, sigma_z, robust, world, prior, shape, sigma_scale, sigma_limit, beta_limit,
      max_turn, sigma_root, sigma_anchor, damping;
};
constexpr int kFitSettings = 14, kFitParts = 7;

struct FitLandmarksParams {
  int joints, points, shapes, steps;
  const double *image, *weights, *world, *rotations, *betas;  // [B, P, 2|2|3], [B, J, 9], [B, S]
  const double *camera, *inv_focal, *anchor, *anchor_betas, *anchor_weight;          // or null
  const double *offsets, *offset_dirs, *bones, *bone_dirs, *prior_mean, *precision;  // the model's tables
  const int64_t *parents, *attach;                                                   // checked by the caller
  std::vector<int> limits;  // (joint, axis, sign) each
  int centre_a, centre_b;
  FitSettings settings;
  double *out_rotations, *out_betas, *out_camera, *out_landmarks, *out_cost;
};

// People [begin, end).
void fit_landmarks(const FitLandmarksParams& p, int64_t begin, int64_t end);

// The two loops that take the time, built per instruction set (fit_landmarks_loops.h).
// H[at[a], at[b]] += sum over five rows of m values of row[a] row[b], a >= b. `at` ascends; only the lower
// triangle of H [n, n] is used; `sum` is room for m values.
void fit_rank_update(double* h, int n, const int* at, int m, const double* rows, double* sum);
void fit_rank_update_avx2(double* h, int n, const int* at, int m, const double* rows, double* sum);
// Solves H x = -g in place of g by Cholesky's factorisation of the lower triangle, which it overwrites with
// the upper factor's transpose; false when H is not positive definite.
bool fit_solve(double* h, int n, double* g);
bool fit_solve_avx2(double* h, int n, double* g);

}  // namespace tore_fast::cpu
