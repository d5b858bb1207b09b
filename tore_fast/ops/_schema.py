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
    # rasterize: per pixel the nearest face (-1 = none), its depth, its barycentric weights
    "rasterize(Tensor vertices_px, Tensor faces, int height, int width) -> (Tensor, Tensor, Tensor)",
)

LIBRARY = torch.library.Library("tore_fast", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
