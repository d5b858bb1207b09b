#include "../cpu/fit_landmarks.h"

#include <cmath>

#include "stable.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

// Contiguous float64 of exactly these sizes.
Tensor sized(const Tensor& t, const std::vector<int64_t>& sizes, const char* what) {
  const Tensor out = checked(t, ScalarType::Double, int64_t(sizes.size()), what);
  for (size_t i = 0; i < sizes.size(); ++i)
    STD_TORCH_CHECK(out.size(i) == sizes[i], what, ": size ", i, " must be ", sizes[i], ", got ",
                    out.size(i));
  return out;
}

Optional sized(const Optional& t, const std::vector<int64_t>& sizes, const char* what) {
  if (!t.has_value()) return Optional();
  return sized(*t, sizes, what);
}

const double* data(const Optional& t) { return t ? t->const_data_ptr<double>() : nullptr; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fit_landmarks_cpu(
    const Tensor& points_in, const Tensor& weights_in, const Tensor& world_in, const Tensor& rotations_in,
    const Tensor& betas_in, const Optional& camera_in, const Optional& inv_focal_in,
    const Optional& anchor_in, const Optional& anchor_betas_in, const Optional& anchor_weight_in,
    const Tensor& offsets_in, const Tensor& offset_dirs_in, const Tensor& bones_in,
    const Tensor& bone_dirs_in, const Tensor& prior_mean_in, const Tensor& precision_in,
    const Numbers parents, const Numbers attach, const Numbers limits, const Numbers centre, int64_t steps,
    const std::vector<double> settings) {
  const int64_t joints = int64_t(parents.size()), count = int64_t(attach.size());
  const Tensor points = checked(points_in, ScalarType::Double, 3, "fit_landmarks: points");
  const Tensor betas = checked(betas_in, ScalarType::Double, 2, "fit_landmarks: betas");
  const int64_t batch = points.size(0), shapes = betas.size(1), logs = 3 * (joints - 1);
  STD_TORCH_CHECK(points.size(1) == count && points.size(2) == 2, "fit_landmarks: points must be [B, ", count,
                  ", 2]");
  STD_TORCH_CHECK(betas.size(0) == batch, "fit_landmarks: betas must have one row a person");
  STD_TORCH_CHECK(joints >= 2 && joints <= 1024 && count <= 4096 && shapes <= 1024,
                  "fit_landmarks: body too large");
  STD_TORCH_CHECK(parents[0] == -1, "fit_landmarks: parents must start with -1");
  for (int64_t j = 1; j < joints; ++j)
    STD_TORCH_CHECK(parents[j] >= 0 && parents[j] < j, "fit_landmarks: parents must be earlier joints");
  for (const int64_t j : attach)
    STD_TORCH_CHECK(j >= 0 && j < joints, "fit_landmarks: attach refers to joint ", j);
  STD_TORCH_CHECK(
      centre.size() == 2 && centre[0] >= 0 && centre[0] < count && centre[1] >= 0 && centre[1] < count,
      "fit_landmarks: centre must be two landmarks");
  STD_TORCH_CHECK(limits.size() % 3 == 0, "fit_landmarks: limits must be triples");
  for (size_t l = 0; l < limits.size(); l += 3)
    STD_TORCH_CHECK(limits[l] >= 1 && limits[l] < joints && limits[l + 1] >= 0 && limits[l + 1] < 3 &&
                        (limits[l + 2] == 1 || limits[l + 2] == -1),
                    "fit_landmarks: limits must be (joint, axis, sign)");
  STD_TORCH_CHECK(settings.size() == size_t(cpu::kFitSettings), "fit_landmarks: ", cpu::kFitSettings,
                  " settings");
  STD_TORCH_CHECK(steps >= 0 && steps <= 1000, "fit_landmarks: steps must be 0..1000");

  const Tensor weights = sized(weights_in, {batch, count, 2}, "fit_landmarks: weights");
  const Tensor world = sized(world_in, {batch, count, 3}, "fit_landmarks: world");
  const Tensor rotations = sized(rotations_in, {batch, joints, 3, 3}, "fit_landmarks: rotations");
  const Optional camera = sized(camera_in, {batch, 4}, "fit_landmarks: camera");
  const Optional inv_focal = sized(inv_focal_in, {batch}, "fit_landmarks: inv_focal");
  const Optional anchor = sized(anchor_in, {batch, joints, 3, 3}, "fit_landmarks: anchor");
  const Optional anchor_betas = sized(anchor_betas_in, {batch, shapes}, "fit_landmarks: anchor_betas");
  const Optional anchor_weight = sized(anchor_weight_in, {batch}, "fit_landmarks: anchor_weight");
  const Tensor offsets = sized(offsets_in, {count, 3}, "fit_landmarks: offsets");
  const Tensor offset_dirs = sized(offset_dirs_in, {count, 3, shapes}, "fit_landmarks: offset_dirs");
  const Tensor bones = sized(bones_in, {joints, 3}, "fit_landmarks: bones");
  const Tensor bone_dirs = sized(bone_dirs_in, {joints, 3, shapes}, "fit_landmarks: bone_dirs");
  const Tensor prior_mean = sized(prior_mean_in, {logs}, "fit_landmarks: prior_mean");
  const Tensor precision = sized(precision_in, {logs, logs}, "fit_landmarks: prior_precision");

  Tensor out_rotations = torch::stable::new_empty(points, {batch, joints, 3, 3});
  Tensor out_betas = torch::stable::new_empty(points, {batch, shapes});
  Tensor out_camera = torch::stable::new_empty(points, {batch, 4});
  Tensor out_landmarks = torch::stable::new_empty(points, {batch, count, 3});
  Tensor out_cost = torch::stable::new_empty(points, {batch, cpu::kFitParts});
  cpu::FitSettings set;
  static_assert(sizeof set == cpu::kFitSettings * sizeof(double));
  std::copy(settings.begin(), settings.end(), &set.sigma_point);
  const cpu::FitLandmarksParams p{int(joints),
                                  int(count),
                                  int(shapes),
                                  int(steps),
                                  points.const_data_ptr<double>(),
                                  weights.const_data_ptr<double>(),
                                  world.const_data_ptr<double>(),
                                  rotations.const_data_ptr<double>(),
                                  betas.const_data_ptr<double>(),
                                  data(camera),
                                  data(inv_focal),
                                  data(anchor),
                                  data(anchor_betas),
                                  data(anchor_weight),
                                  offsets.const_data_ptr<double>(),
                                  offset_dirs.const_data_ptr<double>(),
                                  bones.const_data_ptr<double>(),
                                  bone_dirs.const_data_ptr<double>(),
                                  prior_mean.const_data_ptr<double>(),
                                  precision.const_data_ptr<double>(),
                                  parents.data(),
                                  attach.data(),
                                  {limits.begin(), limits.end()},
                                  int(centre[0]),
                                  int(centre[1]),
                                  set,
                                  out_rotations.mutable_data_ptr<double>(),
                                  out_betas.mutable_data_ptr<double>(),
                                  out_camera.mutable_data_ptr<double>(),
                                  out_landmarks.mutable_data_ptr<double>(),
                                  out_cost.mutable_data_ptr<double>()};
  torch::stable::parallel_for(0, batch, 1,
                              [&](int64_t begin, int64_t end) { cpu::fit_landmarks(p, begin, end); });
  return {out_rotations, out_betas, out_camera, out_landmarks, out_cost};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("fit_landmarks", TORCH_BOX(&fit_landmarks_cpu)); }

}  // namespace tore_fast
