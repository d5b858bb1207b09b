// The mesh attention kernels, included once per instruction set (mesh_attention.cpp, mesh_attention_avx2.cpp).
//
// With J joints padded to Jp columns, everything dense is a product with 16-odd columns held in L1:
//   vertex rows:  S[V, Jp] = Qv Kj^T, then per row the <= 11 neighbour scores, one softmax over both, P Vj + neighbours
//   joint rows:   S^T[T, Jp] = K Qj^T, softmax down the columns (no horizontal sums), Oj = P^T V
#pragma once
#include "attention_tile.h"
#include "mesh_attention.h"

namespace tore_fast::cpu {
namespace {

constexpr int64_t kRowBlock = 48;  // vertex rows between the two dense products: S and O of a block stay in L1

inline int64_t padded_joints(int64_t joints) { return round_up(joints, 16); }

// scores[e] = factor * x . y[col[e]] for e < count
inline void gathered_dots(const float* x, const Rows& y, const int32_t* col, int64_t count, int64_t dim, float factor,
                          float* scores) {
  int64_t e = 0;
  for (; e + 4 <= count; e += 4) {
    const float *y0 = y[col[e]], *y1 = y[col[e + 1]], *y2 = y[col[e + 2]], *y3 = y[col[e + 3]];
    vec a0{}, a1{}, a2{}, a3{};
    for (int64_t d = 0; d < dim; d += kWidth) {
      const vec xv = load(x + d);
      a0 += xv * load(y0 + d);
      a1 += xv * load(y1 + d);
      a2 += xv * load(y2 + d);
      a3 += xv * load(y3 + d);
    }
    hsum4(a0, a1, a2, a3, factor, scores + e);
  }
  if (e < count) {  // the last group repeats its last row; the caller's buffer has room for it
    const int64_t last = count - 1;
    const float *y0 = y[col[e]], *y1 = y[col[e + 1 < last ? e + 1 : last]], *y2 = y[col[e + 2 < last ? e + 2 : last]];
    vec a0{}, a1{}, a2{};
    for (int64_t d = 0; d < dim; d += kWidth) {
      const vec xv = load(x + d);
      a0 += xv * load(y0 + d);
      a1 += xv * load(y1 + d);
      a2 += xv * load(y2 + d);
    }
    hsum4(a0, a1, a2, a0, factor, scores + e);
  }
}

// out[0..dim) (+)= sum_e weight[e] * y[col[e]]
template <int NV>
inline void gathered_sum_tile(const float* weight, const float* y, int64_t stride, const int32_t* col, int64_t count,
                              float* out, bool accumulate) {
  vec acc[NV];
  for (int n = 0; n < NV; ++n) acc[n] = accumulate ? load(out + n * kWidth) : vec{};
  for (int64_t e = 0; e < count; ++e) {
    const vec w = broadcast(weight[e]);
    const float* row = y + col[e] * stride;
    for (int n = 0; n < NV; ++n) acc[n] += w * load(row + n * kWidth);
  }
  for (int n = 0; n < NV; ++n) store(out + n * kWidth, acc[n]);
}

inline void gathered_sum(const float* weight, const Rows& y, const int32_t* col, int64_t count, int64_t dim, float* out,
                         bool accumulate) {
  int64_t d = 0;
  for (; d + 8 * kWidth <= dim; d += 8 * kWidth) {
    gathered_sum_tile<8>(weight, y.data + d, y.stride, col, count, out + d, accumulate);
  }
  for (; d + 2 * kWidth <= dim; d += 2 * kWidth) {
    gathered_sum_tile<2>(weight, y.data + d, y.stride, col, count, out + d, accumulate);
  }
  for (; d < dim; d += kWidth) gathered_sum_tile<1>(weight, y.data + d, y.stride, col, count, out + d, accumulate);
}

// Softmax down the columns of s[rows, ld]; lse[j] of the first `used` columns goes to `lse`. Padding columns become 0.
inline void softmax_columns(float* s, int64_t rows, int64_t ld, int64_t used, float* lse) {
  for (int64_t j = 0; j < ld; j += kWidth) {
    vec top = broadcast(-kInf);
    for (int64_t t = 0; t < rows; ++t) top = vmax(top, load(s + t * ld + j));
    vec total{};
    for (int64_t t = 0; t < rows; ++t) {
      const vec e = vexp(load(s + t * ld + j) - top);
      total += e;
      store(s + t * ld + j, e);
    }
    vec inverse = 1.f / total;
    const vec whole = top + vlog(total);
    for (int i = 0; i < kWidth; ++i) {
      if (j + i < used) {
        lse[j + i] = whole[i];
      } else {
        inverse[i] = 0.f;
      }
    }
    for (int64_t t = 0; t < rows; ++t) store(s + t * ld + j, load(s + t * ld + j) * inverse);
  }
}

// Softmax over `joints` scores (room for jp) and `count` neighbour scores (room for whole vectors).
inline void softmax_row(float* s, int64_t joints, int64_t jp, float* near, int64_t count, RowLse& lse) {
  if (jp == 2 * kWidth && count <= kWidth) return softmax_short<2, 1>(s, joints, near, count, lse);
  if (jp == 2 * kWidth && count <= 2 * kWidth) return softmax_short<2, 2>(s, joints, near, count, lse);
  if (jp == 0 && count <= kWidth) return softmax_short<0, 1>(s, 0, near, count, lse);
  if (jp == 0 && count <= 2 * kWidth) return softmax_short<0, 2>(s, 0, near, count, lse);
  const int64_t padded = round_up(count, kWidth);
  for (int64_t j = joints; j < jp; ++j) s[j] = -kInf;
  for (int64_t e = count; e < padded; ++e) near[e] = -kInf;
  softmax_pair(s, jp, near, padded, lse);
}

// Room for the neighbour scores of one row: whole vectors, and what gathered_dots writes beyond its count.
inline int64_t near_room(const MeshTopologyView& mesh) { return round_up(mesh.longest_row + 3, kPad); }

inline int64_t fwd_scratch(const MeshAttentionFwd& p) {
  const int64_t dp = round_up(p.dim, kPad), jp = padded_joints(p.mesh.joints), tokens = p.mesh.joints + p.mesh.vertices;
  const int64_t copies = 3 * tokens * dp + kRowBlock * dp;
  return 2 * dp * jp + (tokens + kRowBlock) * jp + jp + kRowBlock * near_room(p.mesh) + copies + 64;
}

void fwd_head(const MeshAttentionFwd& p, int64_t b, int64_t h, float* scratch_base) {
  const int64_t joints = p.mesh.joints, vertices = p.mesh.vertices, tokens = joints + vertices;
  const int64_t dp = round_up(p.dim, kPad), jp = padded_joints(joints);
  const uint32_t group = uint32_t(b * p.heads + h);
  Scratch scratch{scratch_base};
  float* kj_t = scratch.take(dp * jp);
  float* qj_t = scratch.take(dp * jp);
  float* dense = scratch.take((tokens + kRowBlock) * jp);
  float* joint_lse = scratch.take(jp);
  const int64_t near_ld = near_room(p.mesh);
  float* near = scratch.take(kRowBlock * near_ld);
  const auto head_of = [&](const float* x, int64_t stride, float* copy) {
    // without joints a row is read a few times only: as it lies
    return joints > 0 ? own_rows(x, stride, tokens, p.dim, dp, copy) : padded_rows(x, stride, tokens, p.dim, dp, copy);
  };
  const Rows q = head_of(p.q.at(b, h), p.q.token, scratch.take(tokens * dp));
  const Rows k = head_of(p.k.at(b, h), p.k.token, scratch.take(tokens * dp));
  const Rows v = head_of(p.v.at(b, h), p.v.token, scratch.take(tokens * dp));
  const OutRows o{scratch.take(kRowBlock * dp), dp};  // of the rows at work
  float* out = p.out + (b * tokens * p.heads + h) * p.dim;
  const int64_t out_stride = p.heads * p.dim;
  float* lse = p.lse + (b * p.heads + h) * tokens;

  if (joints > 0) {
    pack_transposed(k[0], k.stride, joints, dp, p.scale, kj_t, jp);
    pack_transposed(q[0], q.stride, joints, dp, p.scale, qj_t, jp);
    product(tokens, jp, dp, k.data, k.stride, 1, qj_t, jp, dense, jp, false);
    softmax_columns(dense, tokens, jp, joints, joint_lse);
    std::memcpy(lse, joint_lse, joints * sizeof(float));
    if (p.dropout.threshold) {
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < joints; ++j) dense[t * jp + j] *= p.dropout.factor(uint32_t(j * tokens + t), group);
    }
    for (int64_t begin = 0; begin < joints; begin += kRowBlock) {
      const int64_t rows = joints - begin < kRowBlock ? joints - begin : kRowBlock;
      product(rows, dp, tokens, dense + begin, 1, jp, v.data, v.stride, o.data, o.stride, false);
      finish(o, out + begin * out_stride, out_stride, rows, p.dim);
    }
  }

  const Rows kv{k[joints], k.stride}, vv{v[joints], v.stride};
  RowLse row_lse{lse + joints};
  const int32_t* row_ptr = p.mesh.row_ptr;
  for (int64_t begin = 0; begin < vertices; begin += kRowBlock) {
    // Scores, softmax and sums of a block of rows one after the other: each step's rows are independent and short, and what
    // one step stores the next one reads much later.
    const int64_t rows = vertices - begin < kRowBlock ? vertices - begin : kRowBlock;
    const int64_t first = joints + begin;
    if (joints > 0) product(rows, jp, dp, q[first], q.stride, 1, kj_t, jp, dense, jp, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t *col = p.mesh.col_idx + row_ptr[begin + r], *end = p.mesh.col_idx + row_ptr[begin + r + 1];
      gathered_dots(q[first + r], kv, col, end - col, dp, p.scale, near + r * near_ld);
    }
    for (int64_t r = 0; r < rows; ++r)
      softmax_row(dense + r * jp, joints, jp, near + r * near_ld, row_ptr[begin + r + 1] - row_ptr[begin + r], row_lse);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t* col = p.mesh.col_idx + row_ptr[begin + r];
      const int64_t count = row_ptr[begin + r + 1] - row_ptr[begin + r];
      if (p.dropout.threshold) {
        const uint32_t base = uint32_t((first + r) * tokens);
        float *s = dense + r * jp, *n = near + r * near_ld;
        for (int64_t j = 0; j < joints; ++j) s[j] *= p.dropout.factor(base + uint32_t(j), group);
        for (int64_t e = 0; e < count; ++e) n[e] *= p.dropout.factor(base + uint32_t(joints + col[e]), group);
      }
      gathered_sum(near + r * near_ld, vv, col, count, dp, o[r], false);
    }
    if (joints > 0) product(rows, dp, joints, dense, jp, 1, v.data, v.stride, o.data, o.stride, true);
    finish(o, out + first * out_stride, out_stride, rows, p.dim);
  }
  row_lse.finish();
}

inline int64_t bwd_scratch(const MeshAttentionBwd& p) {
  const int64_t dp = round_up(p.dim, kPad), jp = padded_joints(p.mesh.joints), tokens = p.mesh.joints + p.mesh.vertices;
  const int64_t copies = 7 * tokens * dp;
  return 2 * dp * jp + 2 * tokens * jp + 2 * jp + 4 * round_up(p.mesh.vertices + 16, 16) + copies + 64;
}

// s[r, j] -> weights used (dropout applied) and d[r, j] = dO . V -> scaled score gradients, one row.
// lse and delta are the row's numbers for vertex rows; for joint rows (transposed) they differ per column.
inline void score_gradient(float* s, float* d, int64_t n, const float* lse, const float* delta, int64_t step, float scale) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const vec l = step ? load(lse + i) : broadcast(*lse);
    const vec dl = step ? load(delta + i) : broadcast(*delta);
    const vec raw = vexp(load(s + i) - l);
    const vec w = l > broadcast(-kInf) ? raw : vec{};
    store(d + i, w * (load(d + i) - dl) * scale);
    store(s + i, w);
  }
}

// The same with a dropout factor per pair: counters base + i * stride.
inline void score_gradient_dropout(float* s, float* d, int64_t n, const float* lse, const float* delta, int64_t step,
                                   float scale, const Dropout& dropout, uint32_t base, uint32_t stride,
                                   const int32_t* col, uint32_t group) {
  for (int64_t i = 0; i < n; ++i) {
    const float l = lse[step ? i : 0], dl = delta[step ? i : 0];
    const float w = l > -kInf ? std::exp(s[i] - l) : 0.f;
    const float f = dropout.factor(base + (col ? uint32_t(col[i]) : uint32_t(i) * stride), group);
    d[i] = w * (f * d[i] - dl) * scale;
    s[i] = w * f;
  }
}

void bwd_head(const MeshAttentionBwd& p, int64_t b, int64_t h, float* scratch_base) {
  const int64_t joints = p.mesh.joints, vertices = p.mesh.vertices, tokens = joints + vertices;
  const int64_t dp = round_up(p.dim, kPad), jp = padded_joints(joints);
  const uint32_t group = uint32_t(b * p.heads + h);
  const bool dropout = p.dropout.threshold != 0;
  Scratch scratch{scratch_base};
  float* left_t = scratch.take(dp * jp);
  float* right_t = scratch.take(dp * jp);
  float* w = scratch.take(tokens * jp);   // weights, row major [row, Jp]
  float* ds = scratch.take(tokens * jp);  // score gradients
  float* joint_lse = scratch.take(jp);
  float* joint_delta = scratch.take(jp);
  const int64_t near_size = round_up(vertices + 8, 8);
  float *near_w = scratch.take(near_size), *near_ds = scratch.take(near_size);
  const auto head_of = [&](const float* x, int64_t stride, float* copy) {
    // without joints a row is read a few times only: as it lies
    return joints > 0 ? own_rows(x, stride, tokens, p.dim, dp, copy) : padded_rows(x, stride, tokens, p.dim, dp, copy);
  };
  const Rows q = head_of(p.q.at(b, h), p.q.token, scratch.take(tokens * dp));
  const Rows k = head_of(p.k.at(b, h), p.k.token, scratch.take(tokens * dp));
  const Rows v = head_of(p.v.at(b, h), p.v.token, scratch.take(tokens * dp));
  const Rows g = head_of(p.grad.at(b, h), p.grad.token, scratch.take(tokens * dp));
  const int64_t offset = (b * tokens * p.heads + h) * p.dim, out_stride = p.heads * p.dim;
  const OutRows dq{scratch.take(tokens * dp), dp}, dk{scratch.take(tokens * dp), dp}, dv{scratch.take(tokens * dp), dp};
  const float* lse = p.lse + (b * p.heads + h) * tokens;
  const float* delta = p.delta + (b * p.heads + h) * tokens;

  if (joints > 0) {
    // joint rows: w and ds are [token (key), joint (query)]
    for (int64_t j = 0; j < jp; ++j) {
      joint_lse[j] = j < joints ? lse[j] : kInf;  // e^(s - inf) = 0 in the padding
      joint_delta[j] = j < joints ? delta[j] : 0.f;
    }
    pack_transposed(q[0], q.stride, joints, dp, p.scale, left_t, jp);
    pack_transposed(g[0], g.stride, joints, dp, 1.f, right_t, jp);
    product(tokens, jp, dp, k.data, k.stride, 1, left_t, jp, w, jp, false);
    product(tokens, jp, dp, v.data, v.stride, 1, right_t, jp, ds, jp, false);
    for (int64_t t = 0; t < tokens; ++t) {
      if (dropout) {
        score_gradient_dropout(w + t * jp, ds + t * jp, jp, joint_lse, joint_delta, 1, p.scale, p.dropout, uint32_t(t),
                               uint32_t(tokens), nullptr, group);
      } else {
        score_gradient(w + t * jp, ds + t * jp, jp, joint_lse, joint_delta, 1, p.scale);
      }
    }
    product(joints, dp, tokens, ds, 1, jp, k.data, k.stride, dq.data, dq.stride, false);
    product(tokens, dp, joints, ds, jp, 1, q.data, q.stride, dk.data, dk.stride, false);
    product(tokens, dp, joints, w, jp, 1, g.data, g.stride, dv.data, dv.stride, false);

    // vertex rows against the joints: w and ds are [vertex (query), joint (key)]
    pack_transposed(k[0], k.stride, joints, dp, p.scale, left_t, jp);
    pack_transposed(v[0], v.stride, joints, dp, 1.f, right_t, jp);
    product(vertices, jp, dp, q[joints], q.stride, 1, left_t, jp, w, jp, false);
    product(vertices, jp, dp, g[joints], g.stride, 1, right_t, jp, ds, jp, false);
    for (int64_t r = 0; r < vertices; ++r) {
      const int64_t t = joints + r;
      if (dropout) {
        score_gradient_dropout(w + r * jp, ds + r * jp, joints, lse + t, delta + t, 0, p.scale, p.dropout,
                               uint32_t(t * tokens), 1, nullptr, group);
      } else {
        score_gradient(w + r * jp, ds + r * jp, jp, lse + t, delta + t, 0, p.scale);
      }
    }
    product(vertices, dp, joints, ds, jp, 1, k.data, k.stride, dq[joints], dq.stride, false);
    product(joints, dp, vertices, ds, 1, jp, q[joints], q.stride, dk.data, dk.stride, true);
    product(joints, dp, vertices, w, 1, jp, g[joints], g.stride, dv.data, dv.stride, true);
  } else {
    zero_rows(dq, 0, tokens, dp);
    zero_rows(dk, 0, tokens, dp);
    zero_rows(dv, 0, tokens, dp);
  }

  const Rows kv{k[joints], k.stride}, vv{v[joints], v.stride};
  for (int64_t r = 0; r < vertices; ++r) {
    const int64_t t = joints + r;
    const int32_t* col = p.mesh.col_idx + p.mesh.row_ptr[r];
    const int64_t count = p.mesh.row_ptr[r + 1] - p.mesh.row_ptr[r], padded = round_up(count, kWidth);
    gathered_dots(q[t], kv, col, count, dp, p.scale, near_w);
    gathered_dots(g[t], vv, col, count, dp, 1.f, near_ds);
    for (int64_t e = count; e < padded; ++e) near_w[e] = -kInf, near_ds[e] = 0.f;
    if (dropout) {
      score_gradient_dropout(near_w, near_ds, count, lse + t, delta + t, 0, p.scale, p.dropout,
                             uint32_t(t * tokens + joints), 0, col, group);
    } else {
      score_gradient(near_w, near_ds, padded, lse + t, delta + t, 0, p.scale);
    }
    gathered_sum(near_ds, kv, col, count, dp, dq[t], true);
    for (int64_t e = 0; e < count; ++e) {
      float *dk_row = dk[joints + col[e]], *dv_row = dv[joints + col[e]];
      const vec a = broadcast(near_ds[e]), c = broadcast(near_w[e]);
      for (int64_t d = 0; d < dp; d += kWidth) {
        store(dk_row + d, load(dk_row + d) + a * load(q[t] + d));
        store(dv_row + d, load(dv_row + d) + c * load(g[t] + d));
      }
    }
  }
  finish(dq, p.dq + offset, out_stride, tokens, p.dim);
  finish(dk, p.dk + offset, out_stride, tokens, p.dim);
  finish(dv, p.dv + offset, out_stride, tokens, p.dim);
}

}  // namespace
}  // namespace tore_fast::cpu
