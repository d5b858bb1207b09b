"""mesh_attention: FastMETRO's body and hand masks and TORE's NSR, against dense masked attention done well.

The masks here are synthetic meshes with the official ones' statistics (431 vertices, about 7 neighbours each), so that
the benchmark needs no licence-bound file.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from tore_fast.ops import MeshTopology, mesh_attention, mesh_topology
from tore_fast.ops.reference.mesh_attention import mesh_attention_reference

from ..harness import Case, Contender

SHAPES = (  # name, joints, vertices, heads, head_dim
    ("body", 14, 431, 8, 64),
    ("body", 14, 431, 8, 32),
    ("body", 14, 431, 8, 16),
    ("hand", 21, 195, 8, 64),
    ("hand", 21, 195, 8, 16),
    ("nsr", 0, 431, 8, 64),
    ("nsr", 0, 431, 8, 16),
)


def sphere_topology(vertices: int, joints: int) -> MeshTopology:
    """Triangulated points of a Fibonacci sphere in shuffled order: 6 neighbours on average, closed surface."""
    from scipy.spatial import ConvexHull

    i = np.arange(vertices) + 0.5
    polar, turn = np.arccos(1 - 2 * i / vertices), math.pi * (1 + 5**0.5) * i
    points = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], 1)
    points = points[np.random.default_rng(0).permutation(vertices)]
    adjacency = np.zeros((vertices, vertices), bool)
    for a, b, c in ConvexHull(points).simplices:
        adjacency[[a, b, c, b, c, a], [b, c, a, a, b, c]] = True
    return mesh_topology(adjacency, joints)


def _contenders(topology: MeshTopology, device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Contender]:
    ours = [Contender("tore_fast", lambda q, k, v: mesh_attention(q, k, v, topology), ours=True, headline=True)]
    if device == "cuda":
        for way in ("cuda", "sdpa"):

            def run(q, k, v, way=way):
                return mesh_attention(q, k, v, topology, impl=way)

            ours.append(Contender(f"tore_fast {way}", run, ours=way == "cuda", way=way))
    tokens, scale = shape[2], shape[3] ** -0.5
    allowed = topology.dense_mask()
    padded = -(-tokens // 8) * 8
    # fair: in the compute dtype, last dimension stored as a multiple of 8, built once
    additive = torch.zeros(tokens, padded, device=device, dtype=dtype)[:, :tokens].masked_fill_(~allowed, float("-inf"))

    def eager(q, k, v):
        return (q @ k.transpose(-2, -1) * scale + additive).softmax(-1) @ v

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive)

    base = [
        Contender("eager softmax", eager),
        Contender("SDPA, additive mask", sdpa),
        Contender("SDPA, bool mask", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)),
        Contender("compile(eager)", torch.compile(eager, fullgraph=True), heavy=True),
    ]
    if device == "cuda":
        base.append(
            Contender("compile max-autotune", torch.compile(eager, mode="max-autotune", fullgraph=True), heavy=True)
        )
    base += _flex(allowed, device)
    return ours + base


def _flex(allowed: torch.Tensor, device: str) -> list[Contender]:
    """FlexAttention with vertices in reverse Cuthill-McKee order (permutation not timed), two block sizes."""
    if device != "cuda":
        return [
            Contender(
                "FlexAttention",
                lambda *a: None,
                why_not="FlexAttention has no fast CPU backward and is benched on CUDA",
            )
        ]
    import scipy.sparse as sp
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    dense = allowed.cpu().numpy()
    joints = int((dense.all(1)).sum())
    order = reverse_cuthill_mckee(sp.csr_matrix(dense[joints:, joints:]), symmetric_mode=True)
    perm = torch.from_numpy(np.concatenate([np.arange(joints), joints + order])).to(device)
    table = allowed[perm][:, perm].contiguous()
    inverse = perm.argsort()
    flex = torch.compile(flex_attention, dynamic=False)

    def make(block: int) -> Contender:
        mask = create_block_mask(
            lambda b, h, i, j: table[i, j], None, None, *table.shape, device=device, BLOCK_SIZE=block
        )
        return Contender(
            f"FlexAttention {block}",
            lambda q, k, v: flex(q[:, :, perm], k[:, :, perm], v[:, :, perm], block_mask=mask)[:, :, inverse],
            heavy=True,
            note="reordering of q, k, v and out is inside the time",
        )

    return [make(64), make(128)]


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    batches = (1, 8) if device == "cpu" else (1, 8, 64)
    for name, joints, vertices, heads, dim in SHAPES[:1] if quick else SHAPES:
        topology = sphere_topology(vertices, joints).to(device)
        tokens = joints + vertices
        pairs = tokens * tokens - vertices * vertices + topology.col_idx.shape[0]
        for batch in batches[:1] if quick else batches:
            shape = (batch, heads, tokens, dim)

            def make(generator, shape=shape):
                # as a model makes them: one projection [B, T, H, D], heads seen through a transpose
                b, h, t, d = shape
                return [
                    torch.randn(b, t, h, d, device=device, generator=generator).to(dtype).transpose(1, 2)
                    for _ in range(3)
                ]

            def reference(q, k, v, topology=topology):
                return mesh_attention_reference(
                    q, k, v, topology.row_ptr, topology.col_idx, topology.joints, q.shape[-1] ** -0.5
                )[0]

            for backward in (False, True):
                size = batch * heads * tokens * dim * torch.empty((), dtype=dtype).element_size()
                out.append(
                    Case(
                        "mesh_attention",
                        f"{name} B{batch} H{heads} T{tokens} D{dim}",
                        make,
                        _contenders(topology, device, dtype, shape),
                        reference,
                        backward,
                        device,
                        dtype,
                        bytes=size * (12 if backward else 4),
                        macs=batch * heads * pairs * dim * (7 if backward else 2),
                        items=batch,
                        params={
                            "joints": joints,
                            "pairs": pairs,
                            "bias": False,
                            "dim": dim,
                            "keys": tokens,
                            "queries": tokens,
                            "items": batch * heads,
                        },
                    )
                )
    return out
