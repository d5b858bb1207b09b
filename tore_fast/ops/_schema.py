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
    "dpc_knn_cluster(Tensor x, int num_clusters, int k, Tensor? mask, Tensor? exclude, Tensor? noise, bool strict, "
    "bool by_index, int masked) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    # -> merged, norm_weight, total weight + eps, new idx_token, new agg_weight (the last two empty without idx_token)
    "cluster_merge(Tensor x, Tensor cluster, int num_clusters, Tensor? weight, Tensor? idx_token, Tensor? agg_weight) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "cluster_merge_backward(Tensor grad, Tensor x, Tensor cluster, Tensor norm_weight, Tensor total, Tensor merged) "
    "-> (Tensor, Tensor)",
    # token_map: out[d] = s_d * sum over the cells of d of weight(cell) * src_scale[src(cell)] * x[src(cell)], with
    # s_d = 1 / (sum of weights + 1e-6) if normalize else 1; also returns s. No dst_idx / src_idx: rows are the pixels of
    # grid = [H0, W0, H, W]. *_ptr, *_cells: the cells grouped by row (token_map_csr)
    "token_map(Tensor x, Tensor? dst_idx, Tensor? dst_ptr, Tensor? dst_cells, Tensor? src_idx, Tensor? src_ptr, "
    "Tensor? src_cells, Tensor? weight, Tensor? src_scale, int[] grid, int num_dst, bool normalize) -> (Tensor, Tensor)",
    "token_map_csr(Tensor idx_token, int num_tokens) -> (Tensor, Tensor)",
)

LIBRARY = torch.library.Library("tore_fast", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
