"""dpc_knn_cluster_merge, the one call of a CTM or of ITP's clusters, against its two ops and the tensor versions.

On a GPU it is one launch for up to 256 tokens; on the CPU the kernels of the two ops behind one dispatch, so that the
two contenders of ours should not differ there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import dpc_knn_cluster_merge

from ..harness import Case, Contender
from .dpc_knn_cluster import QUICK, K, clustering_cases, token_count
from .dpc_knn_cluster import ours as two_ops

SHAPES = {  # batch, tokens, channels: ITP's 49, TCFormer's later stages, HoT's frames
    "cpu": ((8, 49, 512), (1, 196, 512), (8, 196, 128), (1, 784, 128)),
    "cuda": ((64, 49, 512), (256, 49, 512), (64, 196, 512), (1, 243, 512), (64, 784, 320)),
}


def one_call(x: Tensor) -> tuple[Tensor, ...]:
    out = dpc_knn_cluster_merge(x, token_count(x), K)
    return out.rho, out.delta, out.merged, out.centers, out.cluster


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    mine = [
        Contender("tore_fast", one_call, ours=True, headline=True),
        Contender("tore_fast, two ops", two_ops, ours=True),
    ]
    return clustering_cases("dpc_knn_cluster_merge", mine, QUICK[1:] if quick else SHAPES[device], device, dtype)
