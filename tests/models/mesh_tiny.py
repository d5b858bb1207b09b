"""A ring-shaped toy mesh (12 -> 24 -> 48 vertices) and small configs, so that model tests take milliseconds."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from tore_fast import models
from tore_fast.models.mesh._topology import ModelMesh

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
    {"selector": s, "keep_ratio": r, "selector_dim": 8}
    for s, r in (("soft", 0.8), ("cluster", 0.5), ("attention", 0.25))
)

BUILDERS = {
    "fastmetro": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER), tiny_mesh()),
    "fastmetro_paper": lambda: models.FastMETRO(
        models.FastMETROConfig(**TRANSFORMER, shared_reduction=True, learned_upsample=False), tiny_mesh()
    ),
    "fastmetro_smpl": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER, smpl_head=True), tiny_mesh()),
    "fastmetro_soft": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER, **SOFT), tiny_mesh()),
    "fastmetro_cluster": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER, **CLUSTER), tiny_mesh()),
    "fastmetro_attention": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER, **ATTENTION), tiny_mesh()),
    "fastmetro_hand": lambda: models.FastMETRO(models.FastMETROConfig(**TRANSFORMER), tiny_mesh(2)),
    "tore": lambda: models.FastMETRO_TORE(models.FastMETROToreConfig(**TORE), tiny_mesh()),
    "tore_cluster": lambda: models.FastMETRO_TORE(models.FastMETROToreConfig(**{**TORE, **CLUSTER}), tiny_mesh()),
    "tore_attention": lambda: models.FastMETRO_TORE(models.FastMETROToreConfig(**{**TORE, **ATTENTION}), tiny_mesh()),
    "tore_none": lambda: models.FastMETRO_TORE(models.FastMETROToreConfig(**TORE, selector="none"), tiny_mesh()),
    "tore_hand": lambda: models.FastMETRO_TORE(models.FastMETROToreConfig(**TORE, keep_ratio=0.25), tiny_mesh(2)),
    "metro": lambda: models.METRO(models.METROConfig(**BERT), tiny_mesh()),
    "metro_soft": lambda: models.METRO(models.METROConfig(**BERT, **SOFT), tiny_mesh()),
    "metro_cluster": lambda: models.METRO(models.METROConfig(**BERT, **CLUSTER), tiny_mesh()),
    "metro_attention": lambda: models.METRO(models.METROConfig(**BERT, **ATTENTION), tiny_mesh(2)),
    "metro_hand": lambda: models.METRO(models.METROConfig(**BERT, pooled=True, camera_from_joints=True), tiny_mesh(2)),
    "metro_tore": lambda: models.METRO_TORE(models.METROToreConfig(**METRO_GTR), tiny_mesh()),
    "metro_tore_soft": lambda: models.METRO_TORE(models.METROToreConfig(**{**METRO_GTR, **SOFT}), tiny_mesh()),
    "metro_tore_cluster": lambda: models.METRO_TORE(models.METROToreConfig(**{**METRO_GTR, **CLUSTER}), tiny_mesh()),
    "metro_tore_attention": lambda: models.METRO_TORE(
        models.METROToreConfig(**{**METRO_GTR, **ATTENTION}), tiny_mesh(2)
    ),
    "graphormer": lambda: models.MeshGraphormer(models.MeshGraphormerConfig(**BERT, grid_dim=20), tiny_mesh()),
    "graphormer_hand": lambda: models.MeshGraphormer(
        models.MeshGraphormerConfig(**BERT, grid_dim=20, camera_from_joints=True), tiny_mesh(2)
    ),
}


def tiny_input(name: str, batch: int = 2, dtype: torch.dtype = torch.float32):
    """Features as the tiny models without a backbone take them: a 4 x 4 grid."""
    grid = torch.randn(batch, 24, 4, 4, dtype=dtype)
    if name.startswith("graphormer"):
        return grid.mean((2, 3)), torch.randn(batch, 20, 4, 4, dtype=dtype)
    return grid
