#include "../cpu/pruned_attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "head_tensor.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

// The queries or the keys of a call: lengths or offsets checked, kept alive, and what the kernel needs of them.
struct Items {
  Tensor held;
  cpu::ItemRows rows{nullptr, nullptr, 0};
  int64_t longest;

  Items(const Tensor& x, const Optional& length, const Optional& cu, int64_t batch, const char* what) : held(x) {
    rows.size = x.size(2);
    longest = rows.size;
    if (cu.has_value()) {
      held = checked(*cu, ScalarType::Int, 1, what, x);
      rows.cu = held.const_data_ptr<int32_t>();
      STD_TORCH_CHECK(held.size(0) == batch + 1 && x.size(0) == 1, what, ": offsets need B + 1 entries and packed rows");
      bool ok = batch >= 0 && rows.cu[0] >= 0 && rows.cu[batch] <= rows.size;
      longest = 0;
      for (int64_t b = 0; b < batch; ++b) {
        ok &= rows.cu[b] <= rows.cu[b + 1];
        longest = std::max(longest, int64_t(rows.cu[b + 1]) - int64_t(rows.cu[b]));
      }
      STD_TORCH_CHECK(ok, what, ": offsets must ascend and stay inside the tensor");
    } else if (length.has_value()) {
      held = checked(*length, ScalarType::Int, 1, what, x);
      STD_TORCH_CHECK(held.size(0) == batch, what, ": lengths need one entry per item");
      rows.length = held.const_data_ptr<int32_t>();
    }
  }
};

int64_t items_of(const Tensor& q, const Optional& cu_q, const Optional& cu_k) {
  STD_TORCH_CHECK(cu_q.has_value() == cu_k.has_value(), "pruned_attention: cu_q and cu_k go together");
  STD_TORCH_CHECK(!cu_q.has_value() || (cu_q->dim() == 1 && cu_q->size(0) >= 1), "pruned_attention: cu_q must be [B + 1]");
  return cu_q.has_value() ? cu_q->size(0) - 1 : q.size(0);
}

// Packed rows that belong to no item.
void clear_outside(Tensor& t, const Optional& cu) {
  if (cu.has_value() && t.numel() > 0) std::memset(t.mutable_data_ptr(), 0, t.numel() * sizeof(float));
}

std::tuple<Tensor, Tensor> pruned_attention_fwd_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                                    const Optional& key_bias, const Optional& key_len,
                                                    const Optional& query_len, const Optional& cu_q,
                                                    const Optional& cu_k, int64_t, int64_t, double scale) {
  const Tensor q = head_rows(q_in, "pruned_attention: q"), k = head_rows(k_in, "pruned_attention: k"),
               v = head_rows(v_in, "pruned_attention: v");
  same_size(k, v, "pruned_attention: v");
  STD_TORCH_CHECK(k.size(0) == q.size(0) && k.size(1) == q.size(1) && k.size(3) == q.size(3),
                  "pruned_attention: k does not fit q");
  STD_TORCH_CHECK(q.size(3) > 0, "pruned_attention: the head dimension must be positive");
  const int64_t batch = q.size(0), heads = q.size(1), dim = q.size(3), items = items_of(q, cu_q, cu_k);
  const Items queries(q, query_len, cu_q, items, "pruned_attention: query_len / cu_q");
  const Items keys(k, key_len, cu_k, items, "pruned_attention: key_len / cu_k");
  Optional bias;
  bias = checked(key_bias, ScalarType::Float, 2, "pruned_attention: key_bias", q);
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == batch * k.size(2), "pruned_attention: key_bias must be [B, Nk]");
  Tensor out = empty_floats(q, {batch, q.size(2), heads, dim});
  Tensor lse = torch::stable::new_empty(q, {batch, heads, q.size(2)});
  clear_outside(out, cu_q);
  if (cu_q.has_value()) {
    float* p = lse.mutable_data_ptr<float>();
    std::fill(p, p + lse.numel(), -std::numeric_limits<float>::infinity());
  }
  const cpu::PrunedAttentionFwd p{view(q),
                                  view(k),
                                  view(v),
                                  bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                                  queries.rows,
                                  keys.rows,
                                  out.mutable_data_ptr<float>(),
                                  lse.mutable_data_ptr<float>(),
                                  heads,
                                  dim,
                                  float(scale)};
  const int64_t scratch = cpu::pruned_attention_fwd_scratch(queries.longest, keys.longest, dim);
  torch::stable::parallel_for(0, items * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    cpu::pruned_attention_fwd(p, begin, end, buffer.data());
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pruned_attention_bwd_cpu(
    const Tensor& grad_in, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Optional& key_bias,
    const Tensor& delta_in, const Tensor& lse_in, const Optional& key_len, const Optional& query_len,
    const Optional& cu_q, const Optional& cu_k, int64_t, int64_t, double scale) {
  const Tensor q = head_rows(q_in, "pruned_attention: q"), k = head_rows(k_in, "pruned_attention: k"),
               v = head_rows(v_in, "pruned_attention: v"), grad = head_rows(grad_in, "pruned_attention: grad");
  same_size(k, v, "pruned_attention: v");
  same_size(q, grad, "pruned_attention: grad");
  STD_TORCH_CHECK(k.size(0) == q.size(0) && k.size(1) == q.size(1) && k.size(3) == q.size(3),
                  "pruned_attention: k does not fit q");
  STD_TORCH_CHECK(q.size(3) > 0, "pruned_attention: the head dimension must be positive");
  const Tensor delta = checked(delta_in, ScalarType::Float, 3, "pruned_attention: delta", q);
  const Tensor lse = checked(lse_in, ScalarType::Float, 3, "pruned_attention: lse", q);
  const int64_t batch = q.size(0), heads = q.size(1), dim = q.size(3), nk = k.size(2), items = items_of(q, cu_q, cu_k);
  STD_TORCH_CHECK(delta.numel() == batch * heads * q.size(2) && lse.numel() == delta.numel(),
                  "pruned_attention: delta and lse must be [B, H, Nq]");
  const Items queries(q, query_len, cu_q, items, "pruned_attention: query_len / cu_q");
  const Items keys(k, key_len, cu_k, items, "pruned_attention: key_len / cu_k");
  Optional bias;
  bias = checked(key_bias, ScalarType::Float, 2, "pruned_attention: key_bias", q);
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == batch * nk, "pruned_attention: key_bias must be [B, Nk]");
  Tensor dq = empty_floats(q, {batch, q.size(2), heads, dim});
  Tensor dk = empty_floats(q, {batch, nk, heads, dim});
  Tensor dv = empty_floats(q, {batch, nk, heads, dim});
  Tensor dbias = torch::stable::new_empty(q, {batch, nk});
  clear_outside(dq, cu_q);
  clear_outside(dk, cu_k);
  clear_outside(dv, cu_k);
  std::vector<float> per_head(bias.has_value() ? batch * heads * nk : 0);
  const cpu::PrunedAttentionBwd p{view(q),
                                  view(k),
                                  view(v),
                                  view(grad),
                                  bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                                  delta.const_data_ptr<float>(),
                                  lse.const_data_ptr<float>(),
                                  queries.rows,
                                  keys.rows,
                                  dq.mutable_data_ptr<float>(),
                                  dk.mutable_data_ptr<float>(),
                                  dv.mutable_data_ptr<float>(),
                                  per_head.empty() ? nullptr : per_head.data(),
                                  heads,
                                  dim,
                                  float(scale)};
  const int64_t scratch = cpu::pruned_attention_bwd_scratch(queries.longest, keys.longest, dim);
  torch::stable::parallel_for(0, items * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    cpu::pruned_attention_bwd(p, begin, end, buffer.data());
  });
  float* sum = dbias.mutable_data_ptr<float>();
  if (batch * nk > 0) std::memset(sum, 0, batch * nk * sizeof(float));  // memset(null, 0, 0) is undefined
  if (!per_head.empty()) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j < nk; ++j) sum[b * nk + j] += per_head[(b * heads + h) * nk + j];
  }
  return {dq, dk, dv, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("pruned_attention_fwd", TORCH_BOX(&pruned_attention_fwd_cpu));
  m.impl("pruned_attention_bwd", TORCH_BOX(&pruned_attention_bwd_cpu));
}

}  // namespace tore_fast
