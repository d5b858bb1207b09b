"""Every tore_fast op as one line of schema; torch.ops.tore_fast.* exists from here on, with or without a compiler.

C++ (csrc/torch, csrc/torch_cuda) and Triton register their kernels under these names; fakes and autograd formulas
stand beside the public function in ops/<stem>.py.
"""

from __future__ import annotations

import torch

SCHEMAS = (
    # mesh_upsample: y[b, r, f] = sum_e values[e] * x[b, col_idx[e], f]; the t_* arrays are the transposed matrix
    "mesh_upsample(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, "
    "Tensor t_row_ptr, Tensor t_col_idx, Tensor t_values) -> Tensor",
    # clustering: mask, exclude are bool [B, N]; strict drops the index tie-break of equal densities
    "knn_density(Tensor x, int k, Tensor? mask) -> Tensor",
    "density_delta(Tensor x, Tensor rho, Tensor? mask, bool strict) -> (Tensor, Tensor)",
    # -> centers, cluster, rho, delta, score
    "dpc_knn_cluster(Tensor x, SymInt num_clusters, int k, Tensor? mask, Tensor? exclude, Tensor? noise, bool strict, "
    "bool by_index, int masked) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    # -> merged, norm_weight, total weight + eps, new idx_token, new agg_weight (the last two empty without idx_token)
    "cluster_merge(Tensor x, Tensor cluster, SymInt num_clusters, Tensor? weight, Tensor? idx_token, Tensor? "
    "agg_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "cluster_merge_backward(Tensor grad, Tensor x, Tensor cluster, Tensor norm_weight, Tensor total, Tensor merged) "
    "-> (Tensor, Tensor)",
    # the two above in one: results of cluster_merge, then those of dpc_knn_cluster
    "dpc_knn_cluster_merge(Tensor x, SymInt num_clusters, int k, Tensor? mask, Tensor? exclude, Tensor? noise, "
    "bool strict, bool by_index, int masked, Tensor? weight, Tensor? idx_token, Tensor? agg_weight) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    # token_map: out[d] = s_d * sum over the cells of d of weight(cell) * src_scale[src(cell)] * x[src(cell)], with
    # s_d = 1 / (sum of weights + 1e-6) if normalize else 1; also returns s. No dst_idx / src_idx: rows are the pixels
    # of grid = [H0, W0, H, W]. *_ptr, *_cells: the cells grouped by row (token_map_csr)
    "token_map(Tensor x, Tensor? dst_idx, Tensor? dst_ptr, Tensor? dst_cells, Tensor? src_idx, Tensor? src_ptr, "
    "Tensor? src_cells, Tensor? weight, Tensor? src_scale, SymInt[] grid, SymInt num_dst, bool normalize) -> "
    "(Tensor, Tensor)",
    "token_map_csr(Tensor idx_token, SymInt num_tokens) -> (Tensor, Tensor)",
    # mesh_attention: (out [B, T, H, D], lse [B, H, T] float32); joints dense, vertices by CSR row; seed: one int64
    # tiles, t_tiles [n, 128] int32: the pattern and its transpose as ops/_mesh_tiles.py packs them, for CUDA in 16 bit
    "mesh_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor row_ptr, Tensor col_idx, Tensor t_row_ptr, "
    "Tensor t_col_idx, int joints, Tensor? tiles, Tensor? t_tiles, float scale, float dropout_p, Tensor? seed) "
    "-> (Tensor, Tensor)",
    # (dq, dk, dv), each [B, T, H, D]; grad [B, H, T, D], delta [B, H, T] = sum(grad * out) - grad_lse
    "mesh_attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor delta, Tensor lse, Tensor row_ptr, "
    "Tensor col_idx, Tensor t_row_ptr, Tensor t_col_idx, int joints, Tensor? tiles, Tensor? t_tiles, float scale, "
    "float dropout_p, Tensor? seed) "
    "-> (Tensor, Tensor, Tensor)",
    # pruned_attention: (out [B, Nq, H, D], lse [B, H, Nq]); packed form: B = 1 and cu_q, cu_k give the sequences
    "pruned_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? key_bias, Tensor? key_len, Tensor? query_len, "
    "Tensor? cu_q, Tensor? cu_k, SymInt max_q, SymInt max_k, float scale) -> (Tensor, Tensor)",
    # (dq [B, Nq, H, D], dk, dv [B, Nk, H, D], dbias [B, Nk] float32)
    "pruned_attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? key_bias, Tensor delta, Tensor lse, "
    "Tensor? key_len, Tensor? query_len, Tensor? cu_q, Tensor? cu_k, SymInt max_q, SymInt max_k, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    # bipartite_match: (unm_idx, src_idx, dst_idx int32, best [B, A] float32); protect 0 never, 1 forced
    "bipartite_match(Tensor metric, Tensor? protected, Tensor? coverage, int r, int source_parity, bool class_token, "
    "bool distill_token, int protect, bool sort_by_index) -> (Tensor, Tensor, Tensor, Tensor)",
    # bipartite_merge: y[b, o] = sum over owner[b, t] == o of weight x (average: divided by the sum of weights)
    "bipartite_merge(Tensor x, Tensor owner, int num_out, bool average, Tensor? weight) -> Tensor",
    "ppt_select(Tensor score, int keep, bool sort_by_position) -> Tensor",
    # strassen: (packed weight, what its columns are to be multiplied by); act 0 none, 1 relu, 2 gelu; norm_eps < 0: no
    # norm
    "strassen_pack(Tensor weight, int level) -> (Tensor, Tensor)",
    "strassen_linear(Tensor x, Tensor weight, Tensor packed, Tensor column, Tensor? bias, Tensor? residual, int level, "
    "int act, int split, float norm_eps) -> Tensor",
    # rasterize: per pixel the nearest face (-1 = none), its depth, its barycentric weights
    "rasterize(Tensor vertices_px, Tensor faces, int height, int width) -> (Tensor, Tensor, Tensor)",
    # fit_landmarks: rotations, betas, camera, landmarks, cost parts; the order of the arguments and of settings is that
    # of ops/fit_landmarks.py (LandmarkModel, FitSettings); every tensor is float64
    "fit_landmarks(Tensor points, Tensor weights, Tensor world, Tensor rotations, Tensor betas, Tensor? camera, "
    "Tensor? inv_focal, Tensor? anchor, Tensor? anchor_betas, Tensor? anchor_weight, Tensor offsets, Tensor "
    "offset_dirs, Tensor bones, Tensor bone_dirs, Tensor prior_mean, Tensor prior_precision, int[] parents, "
    "int[] attach, int[] limits, int[] centre, int steps, float[] settings) -> (Tensor, Tensor, Tensor, "
    "Tensor, Tensor)",
)

LIBRARY = torch.library.Library("tore_fast", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
