"""A ring-shaped toy mesh (12 -> 24 -> 48 vertices) and small configs, so that model tests take milliseconds."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from tore_fast.models import (
    METRO,
    METRO_TORE,
    FastMETRO,
    FastMETRO_TORE,
    FastMETROConfig,
    FastMETROToreConfig,
    MeshGraphormer,
    MeshGraphormerConfig,
    METROConfig,
    METROToreConfig,
)
from tore_fast.models._mesh import ModelMesh

VERTICES, JOINTS = 12, 5


def ring(count: int) -> sp.csr_matrix:
    eye = np.eye(count)
    return sp.csr_matrix((eye + np.roll(eye, 1, 1) + np.roll(eye, -1, 1)) / 3)


def midpoints(count: int) -> sp.csr_matrix:
    """Every second fine vertex is coarse, the others are means of two, scaled so that rows do not sum to one."""
    up = np.zeros((2 * count, count))
    up[::2] = np.eye(count)
    up[1::2] = 0.45 * (np.eye(count) + np.roll(np.eye(count), 1, 1))
    return sp.csr_matrix(up)


def tiny_mesh(levels: int = 3, joints: int = JOINTS) -> ModelMesh:
    rng = np.random.default_rng(0)
    ups = tuple(midpoints(VERTICES * 2**i) for i in range(levels - 1))
    return ModelMesh(ring(VERTICES), ups, rng.normal(size=(joints, 3)), rng.normal(size=(VERTICES, 3)))


COMMON = dict(backbone=None, feature_dim=24, stride=32, image_size=128, num_joints=JOINTS)
TRANSFORMER = dict(**COMMON, layers=2, dim_1=32, dim_2=16, feedforward_1=64, feedforward_2=32, heads=4)
BERT = dict(**COMMON, hidden=(32, 16, 16), widths=(12, 8), feedforward=(48, 32, 32), layers=2, heads=2, camera_dim=10)
TORE = dict(**TRANSFORMER, dim_3=16, feedforward_3=32, selector_dim=8)
METRO_GTR = {**BERT, "dim_3": 16, "feedforward_3": 32, "heads_3": 4, "layers_3": 2, "selector_dim": 8}
SOFT, CLUSTER, ATTENTION = (
    {"selector": s, "keep_ratio": r, "selector_dim": 8} for s, r in (("soft", 0.8), ("cluster", 0.5), ("attention", 0.25))
)

BUILDERS = {
    "fastmetro": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER), tiny_mesh()),
    "fastmetro_paper": lambda: FastMETRO(
        FastMETROConfig(**TRANSFORMER, shared_reduction=True, learned_upsample=False), tiny_mesh()
    ),
    "fastmetro_smpl": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER, smpl_head=True), tiny_mesh()),
    "fastmetro_soft": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER, **SOFT), tiny_mesh()),
    "fastmetro_cluster": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER, **CLUSTER), tiny_mesh()),
    "fastmetro_attention": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER, **ATTENTION), tiny_mesh()),
    "fastmetro_hand": lambda: FastMETRO(FastMETROConfig(**TRANSFORMER), tiny_mesh(2)),
    "tore": lambda: FastMETRO_TORE(FastMETROToreConfig(**TORE), tiny_mesh()),
    "tore_cluster": lambda: FastMETRO_TORE(FastMETROToreConfig(**{**TORE, **CLUSTER}), tiny_mesh()),
    "tore_attention": lambda: FastMETRO_TORE(FastMETROToreConfig(**{**TORE, **ATTENTION}), tiny_mesh()),
    "tore_none": lambda: FastMETRO_TORE(FastMETROToreConfig(**TORE, selector="none"), tiny_mesh()),
    "tore_hand": lambda: FastMETRO_TORE(FastMETROToreConfig(**TORE, keep_ratio=0.25), tiny_mesh(2)),
    "metro": lambda: METRO(METROConfig(**BERT), tiny_mesh()),
    "metro_soft": lambda: METRO(METROConfig(**BERT, **SOFT), tiny_mesh()),
    "metro_cluster": lambda: METRO(METROConfig(**BERT, **CLUSTER), tiny_mesh()),
    "metro_attention": lambda: METRO(METROConfig(**BERT, **ATTENTION), tiny_mesh(2)),
    "metro_hand": lambda: METRO(METROConfig(**BERT, pooled=True, camera_from_joints=True), tiny_mesh(2)),
    "metro_tore": lambda: METRO_TORE(METROToreConfig(**METRO_GTR), tiny_mesh()),
    "metro_tore_soft": lambda: METRO_TORE(METROToreConfig(**{**METRO_GTR, **SOFT}), tiny_mesh()),
    "metro_tore_cluster": lambda: METRO_TORE(METROToreConfig(**{**METRO_GTR, **CLUSTER}), tiny_mesh()),
    "metro_tore_attention": lambda: METRO_TORE(METROToreConfig(**{**METRO_GTR, **ATTENTION}), tiny_mesh(2)),
    "graphormer": lambda: MeshGraphormer(MeshGraphormerConfig(**BERT, grid_dim=20), tiny_mesh()),
    "graphormer_hand": lambda: MeshGraphormer(
        MeshGraphormerConfig(**BERT, grid_dim=20, camera_from_joints=True), tiny_mesh(2)
    ),
}


def tiny_input(name: str, batch: int = 2, dtype: torch.dtype = torch.float32):
    """Features as the tiny models without a backbone take them: a 4 x 4 grid."""
    grid = torch.randn(batch, 24, 4, 4, dtype=dtype)
    if name.startswith("graphormer"):
        return grid.mean((2, 3)), torch.randn(batch, 20, 4, 4, dtype=dtype)
    return grid
