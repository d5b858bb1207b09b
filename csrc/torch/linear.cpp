#include "../cpu/linear.h"

#include <memory>

#include "stable.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

void check_level(int64_t level, int64_t in, int64_t out) {
  STD_TORCH_CHECK(level >= 0 && level <= cpu::kStrassenMaxLevel, "strassen: level must be 0, 1 or 2");
  const int64_t grain = cpu::kStrassenGrain << level;
  STD_TORCH_CHECK(in > 0 && out > 0 && in % grain == 0 && out % grain == 0,
                  "strassen: both sizes of the weight must be multiples of ", grain);
}

// Kept by each thread: giving half a megabyte back after every call costs page faults (2 % of a small product).
float* scratch_of(int64_t floats) {
  thread_local std::unique_ptr<float[]> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    memory.reset(new float[floats + 16]);
    size = floats;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

std::tuple<Tensor, Tensor> strassen_pack_cpu(const Tensor& weight_in, int64_t level) {
  const Tensor weight = checked(weight_in, ScalarType::Float, 2, "strassen_pack: weight");
  const int64_t out = weight.size(0), in = weight.size(1);
  check_level(level, in, out);
  const int64_t count = cpu::strassen_count(int(level));
  Tensor packed = empty_floats(weight, {count, (in * out) >> (2 * level)}, false);
  Tensor column = torch::stable::new_empty(weight, {out});
  cpu::StrassenPack p{weight.const_data_ptr<float>(), nullptr, packed.mutable_data_ptr<float>(), in, out, int(level)};
  cpu::strassen_column(p, column.mutable_data_ptr<float>());
  p.column = column.const_data_ptr<float>();
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    cpu::strassen_pack(p, begin, end, scratch_of(cpu::strassen_pack_scratch(p)));
  });
  return {packed, column};
}

Tensor strassen_linear_cpu(const Tensor& x_in, const Tensor& weight_in, const Tensor& packed_in, const Tensor& column_in,
                           const Optional& bias_in, const Optional& residual_in, int64_t level, int64_t act,
                           int64_t split, double norm_eps) {
  const Tensor x = checked(x_in, ScalarType::Float, 2, "strassen_linear: x");
  const Tensor weight = checked(weight_in, ScalarType::Float, 2, "strassen_linear: weight", x_in);
  const Tensor packed = checked(packed_in, ScalarType::Float, 2, "strassen_linear: packed weight", x_in);
  const Tensor column = checked(column_in, ScalarType::Float, 1, "strassen_linear: column scales", x_in);
  const int64_t rows = x.size(0), out = weight.size(0), in = weight.size(1);
  check_level(level, in, out);
  STD_TORCH_CHECK(x.size(1) == in && column.numel() == out, "strassen_linear: x must be [rows, in] for a weight [out, in]");
  STD_TORCH_CHECK(packed.numel() == cpu::strassen_count(int(level)) * ((in * out) >> (2 * level)),
                  "strassen_linear: the packed weight is of another shape or level");
  STD_TORCH_CHECK(act >= 0 && act <= 2, "strassen_linear: act must be 0, 1 or 2");
  Optional bias, residual;
  bias = checked(bias_in, ScalarType::Float, 1, "strassen_linear: bias", x_in);
  residual = checked(residual_in, ScalarType::Float, 2, "strassen_linear: residual", x_in);
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == out, "strassen_linear: bias must be [out]");
  STD_TORCH_CHECK(!residual.has_value() || (residual->size(0) == rows && residual->size(1) == out),
                  "strassen_linear: residual must be [rows, out]");
  STD_TORCH_CHECK(split >= 1 && out % (split * cpu::kStrassenGrain) == 0 && (split == 1 || !residual.has_value()),
                  "strassen_linear: parts must be multiples of ", cpu::kStrassenGrain, " outputs and take no residual");
  Tensor y = empty_floats(x, {split, rows, out / split});
  const cpu::StrassenLinear p{x.const_data_ptr<float>(),
                              weight.const_data_ptr<float>(),
                              packed.const_data_ptr<float>(),
                              column.const_data_ptr<float>(),
                              bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                              residual.has_value() ? residual->const_data_ptr<float>() : nullptr,
                              y.mutable_data_ptr<float>(),
                              rows,
                              in,
                              out,
                              split,
                              float(norm_eps),
                              int(level),
                              static_cast<cpu::StrassenAct>(act)};
  torch::stable::parallel_for(0, p.units(), 1, [&](int64_t begin, int64_t end) {
    cpu::strassen_linear(p, begin, end, scratch_of(cpu::strassen_linear_scratch(p, end - begin)));
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("strassen_pack", TORCH_BOX(&strassen_pack_cpu));
  m.impl("strassen_linear", TORCH_BOX(&strassen_linear_cpu));
}

}  // namespace tore_fast
