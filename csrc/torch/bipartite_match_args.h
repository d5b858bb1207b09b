// Checks of bipartite_match's and bipartite_merge's tensors, shared by the CPU and CUDA bindings.
#pragma once
#include "stable.h"

namespace tore_fast {

struct BipartiteMatchArgs {
  Tensor metric;
  std::optional<Tensor> flag, coverage;
  int64_t batch, tokens, channels, num_a;

  BipartiteMatchArgs(const Tensor& metric_in, const std::optional<Tensor>& protected_in,
                     const std::optional<Tensor>& coverage_in, int64_t r, int64_t parity)
      : metric(checked(metric_in, metric_in.scalar_type(), 3, "bipartite_match: metric")),
        flag(checked(protected_in, ScalarType::Bool, 2, "bipartite_match: protected", metric_in)),
        coverage(checked(coverage_in, ScalarType::Float, 2, "bipartite_match: coverage", metric_in)) {
    batch = metric.size(0), tokens = metric.size(1), channels = metric.size(2);
    const auto fits = [&](const std::optional<Tensor>& t) {
      return !t.has_value() || (t->size(0) == batch && t->size(1) == tokens);
    };
    STD_TORCH_CHECK(fits(flag), "bipartite_match: protected must be [B, T]");
    STD_TORCH_CHECK(fits(coverage), "bipartite_match: coverage must be [B, T]");
    STD_TORCH_CHECK(tokens < (int64_t(1) << 30) && channels < (int64_t(1) << 30), "bipartite_match: metric is too large");
    STD_TORCH_CHECK(parity == 0 || parity == 1, "bipartite_match: source_parity must be 0 or 1");
    num_a = parity ? tokens / 2 : tokens - tokens / 2;
    STD_TORCH_CHECK(r >= 0 && r <= num_a && (r == 0 || tokens > num_a), "bipartite_match: r out of range");
  }
};

struct BipartiteMergeArgs {
  Tensor x, owner;
  std::optional<Tensor> weight;
  int64_t batch, tokens, channels;

  BipartiteMergeArgs(const Tensor& x_in, const Tensor& owner_in, int64_t rows, const std::optional<Tensor>& weight_in)
      : x(checked(x_in, x_in.scalar_type(), 3, "bipartite_merge: x")),
        owner(checked(owner_in, ScalarType::Long, 2, "bipartite_merge: owner", x_in)),
        weight(checked(weight_in, ScalarType::Float, 2, "bipartite_merge: weight", x_in)) {
    batch = x.size(0), tokens = x.size(1), channels = x.size(2);
    STD_TORCH_CHECK(owner.size(0) == batch && owner.size(1) == tokens, "bipartite_merge: owner must be [B, T]");
    STD_TORCH_CHECK(!weight.has_value() || (weight->size(0) == batch && weight->size(1) == tokens),
                    "bipartite_merge: weight must be [B, T]");
    STD_TORCH_CHECK(tokens < (int64_t(1) << 30) && channels < (int64_t(1) << 30), "bipartite_merge: x is too large");
    STD_TORCH_CHECK(rows >= 0, "bipartite_merge: num_out must not be negative");
  }
};

}  // namespace tore_fast
