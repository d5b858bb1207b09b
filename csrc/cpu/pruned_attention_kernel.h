// The pruned attention kernels, included once per instruction set. All keys of a head are transposed once into
// [D, Nk] (short after pruning: tens to hundreds), then a block of query rows is two products around a row softmax.
#pragma once
#include "attention_tile.h"
#include "pruned_attention.h"

namespace tore_fast::cpu {
namespace {

// Query rows per block: scores of a block stay in L1/L2.
inline int64_t row_block(int64_t padded_keys) {
  const int64_t rows = 8192 / (padded_keys > 0 ? padded_keys : 1) / 6 * 6;
  return rows < 6 ? 6 : rows > 48 ? 48 : rows;
}

// bias[j] for j < keys (0 without one), -inf in the padding: adding it also masks the padded columns.
inline void pack_bias(const float* key_bias, int64_t keys, int64_t padded, float* bias) {
  for (int64_t j = 0; j < padded; ++j) bias[j] = j >= keys ? -kInf : key_bias ? key_bias[j] : 0.f;
}

inline void add_bias(float* s, const float* bias, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j += kWidth) store(s + j, load(s + j) + load(bias + j));
}

void fwd_item(const PrunedAttentionFwd& p, int64_t b, int64_t h, float* scratch_base) {
  const int64_t nq = p.queries.count(b), nk = p.keys.count(b), dp = round_up(p.dim, kPad), nkp = round_up(nk, 16);
  const int64_t qe = p.queries.entry(b), ke = p.keys.entry(b), q0 = p.queries.start(b), k0 = p.keys.start(b);
  const int64_t out_stride = p.heads * p.dim;
  float* out = p.out + ((qe * p.queries.size + q0) * p.heads + h) * p.dim;
  float* lse = p.lse + (qe * p.heads + h) * p.queries.size + q0;
  const int64_t rest = p.queries.cu ? nq : p.queries.size;  // padded form: rows beyond the length are zero
  const int64_t done = nk > 0 ? nq : 0;
  for (int64_t i = done; i < rest; ++i) {
    std::memset(out + i * out_stride, 0, p.dim * sizeof(float));
    lse[i] = -kInf;
  }
  if (done == 0) return;

  Scratch scratch{scratch_base};
  const int64_t block = row_block(nkp);
  float* k_t = scratch.take(dp * nkp);
  float* bias = scratch.take(nkp);
  float* s = scratch.take(block * nkp);
  float* copies = scratch.next;
  const bool pad = dp != p.dim;
  const Rows q = padded_rows(p.q.at(qe, h) + q0 * p.q.token, p.q.token, nq, p.dim, dp, copies);
  const Rows v = padded_rows(p.v.at(ke, h) + k0 * p.v.token, p.v.token, nk, p.dim, dp, copies + (pad ? nq * dp : 0));
  const OutRows o = padded_out(out, out_stride, p.dim, dp, copies + (pad ? (nq + nk) * dp : 0));
  const float* k = p.k.at(ke, h) + k0 * p.k.token;
  if (pad) std::memset(k_t + p.dim * nkp, 0, (dp - p.dim) * nkp * sizeof(float));
  pack_transposed(k, p.k.token, nk, p.dim, p.scale, k_t, nkp);
  pack_bias(p.key_bias ? p.key_bias + ke * p.keys.size + k0 : nullptr, nk, nkp, bias);
  const int64_t used = round_up(nk, kWidth);              // columns beyond are never read
  const int64_t biased = p.key_bias ? 0 : used - kWidth;  // without a bias only the padding of the last vector matters
  RowLse row_lse{lse};
  for (int64_t begin = 0; begin < nq; begin += block) {
    const int64_t rows = nq - begin < block ? nq - begin : block;
    product(rows, used, dp, q[begin], q.stride, 1, k_t, nkp, s, nkp, false);
    for (int64_t r = 0; r < rows; ++r) {
      if (p.key_bias || used != nk) add_bias(s + r * nkp, bias, biased, used);
      softmax_pair(s + r * nkp, used, nullptr, 0, row_lse);
    }
    product(rows, dp, nk, s, nkp, 1, v.data, v.stride, o[begin], o.stride, false);
  }
  row_lse.finish();
  finish(o, out, out_stride, nq, p.dim);
}

void bwd_item(const PrunedAttentionBwd& p, int64_t b, int64_t h, float* scratch_base) {
  const int64_t nq = p.queries.count(b), nk = p.keys.count(b), dp = round_up(p.dim, kPad), nkp = round_up(nk, 16);
  const int64_t qe = p.queries.entry(b), ke = p.keys.entry(b), q0 = p.queries.start(b), k0 = p.keys.start(b);
  const int64_t stride = p.heads * p.dim;
  float* dq_out = p.dq + ((qe * p.queries.size + q0) * p.heads + h) * p.dim;
  float* dk_out = p.dk + ((ke * p.keys.size + k0) * p.heads + h) * p.dim;
  float* dv_out = p.dv + ((ke * p.keys.size + k0) * p.heads + h) * p.dim;
  const int64_t all_q = p.queries.cu ? nq : p.queries.size, all_k = p.keys.cu ? nk : p.keys.size;
  const bool empty = nq == 0 || nk == 0;
  zero_rows({dq_out, stride}, empty ? 0 : nq, all_q, p.dim);
  zero_rows({dk_out, stride}, empty ? 0 : nk, all_k, p.dim);
  zero_rows({dv_out, stride}, empty ? 0 : nk, all_k, p.dim);
  float* dbias = p.dbias ? p.dbias + (ke * p.heads + h) * p.keys.size + k0 : nullptr;
  if (dbias) std::memset(dbias, 0, all_k * sizeof(float));
  if (empty) return;

  Scratch scratch{scratch_base};
  const int64_t block = row_block(nkp);
  float *k_t = scratch.take(dp * nkp), *v_t = scratch.take(dp * nkp);
  float *bias = scratch.take(nkp), *bias_grad = scratch.take(nkp);
  float *s = scratch.take(block * nkp), *ds = scratch.take(block * nkp);
  float* copies = scratch.next;
  const int64_t cq = dp != p.dim ? nq * dp : 0, ck = dp != p.dim ? nk * dp : 0;
  const Rows q = padded_rows(p.q.at(qe, h) + q0 * p.q.token, p.q.token, nq, p.dim, dp, copies);
  const Rows g = padded_rows(p.grad.at(qe, h) + q0 * p.grad.token, p.grad.token, nq, p.dim, dp, copies + cq);
  const Rows k = padded_rows(p.k.at(ke, h) + k0 * p.k.token, p.k.token, nk, p.dim, dp, copies + 2 * cq);
  const OutRows dq = padded_out(dq_out, stride, p.dim, dp, copies + 2 * cq + ck);
  const OutRows dk = padded_out(dk_out, stride, p.dim, dp, copies + 3 * cq + ck);
  const OutRows dv = padded_out(dv_out, stride, p.dim, dp, copies + 3 * cq + 2 * ck);
  if (ck) {
    std::memset(k_t + p.dim * nkp, 0, (dp - p.dim) * nkp * sizeof(float));
    std::memset(v_t + p.dim * nkp, 0, (dp - p.dim) * nkp * sizeof(float));
  }
  pack_transposed(k.data, k.stride, nk, p.dim, p.scale, k_t, nkp);
  pack_transposed(p.v.at(ke, h) + k0 * p.v.token, p.v.token, nk, p.dim, 1.f, v_t, nkp);
  pack_bias(p.key_bias ? p.key_bias + ke * p.keys.size + k0 : nullptr, nk, nkp, bias);
  std::memset(bias_grad, 0, nkp * sizeof(float));
  const float* lse = p.lse + (qe * p.heads + h) * p.queries.size + q0;
  const float* delta = p.delta + (qe * p.heads + h) * p.queries.size + q0;
  for (int64_t begin = 0; begin < nq; begin += block) {
    const int64_t rows = nq - begin < block ? nq - begin : block;
    product(rows, nkp, dp, q[begin], q.stride, 1, k_t, nkp, s, nkp, false);
    product(rows, nkp, dp, g[begin], g.stride, 1, v_t, nkp, ds, nkp, false);
    for (int64_t r = 0; r < rows; ++r) {
      float *s_row = s + r * nkp, *ds_row = ds + r * nkp;
      const bool none = !(lse[begin + r] > -kInf);
      const vec l = broadcast(none ? 0.f : lse[begin + r]), dl = broadcast(delta[begin + r]);
      for (int64_t j = 0; j < nkp; j += kWidth) {
        const vec w = none ? vec{} : vexp(load(s_row + j) + load(bias + j) - l);
        const vec grad = w * (load(ds_row + j) - dl);
        store(s_row + j, w);
        store(bias_grad + j, load(bias_grad + j) + grad);
        store(ds_row + j, grad * p.scale);
      }
    }
    product(rows, dp, nk, ds, nkp, 1, k.data, k.stride, dq[begin], dq.stride, false);
    product(nk, dp, rows, ds, 1, nkp, q[begin], q.stride, dk.data, dk.stride, begin > 0);
    product(nk, dp, rows, s, 1, nkp, g[begin], g.stride, dv.data, dv.stride, begin > 0);
  }
  if (dbias) std::memcpy(dbias, bias_grad, nk * sizeof(float));
  finish(dq, dq_out, stride, nq, p.dim);
  finish(dk, dk_out, stride, nk, p.dim);
  finish(dv, dv_out, stride, nk, p.dim);
}

inline int64_t fwd_scratch(int64_t nq, int64_t nk, int64_t dim) {
  const int64_t dp = round_up(dim, kPad), nkp = round_up(nk, 16);
  return (dp + 1 + row_block(nkp)) * nkp + (dp == dim ? 0 : (2 * nq + nk) * dp) + 64;
}

inline int64_t bwd_scratch(int64_t nq, int64_t nk, int64_t dim) {
  const int64_t dp = round_up(dim, kPad), nkp = round_up(nk, 16);
  return 2 * (dp + 1 + row_block(nkp)) * nkp + (dp == dim ? 0 : (3 * nq + 3 * nk) * dp) + 64;
}

}  // namespace
}  // namespace tore_fast::cpu
