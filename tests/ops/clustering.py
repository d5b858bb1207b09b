"""Inputs and independent formulas shared by the clustering tests (no test in here)."""

from __future__ import annotations

import importlib

import numpy as np
import torch


def impls(op: str, *args) -> list[str]:
    module = importlib.import_module(f"tore_fast.ops.{op}")
    return ["reference", *(b for b in module.BACKENDS if module.why_not(b, *args) is None)]


def walk(*shape, seed: int = 0) -> torch.Tensor:
    """Smooth tokens [B, N, C], as of a video: neighbours are much closer than the norm of a token."""
    gen = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(*shape, generator=gen).cumsum(1)


def grid_points(*shape, seed: int = 0) -> torch.Tensor:
    """Tokens with few distinct integer features: squared distances are exact and tie all the time."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, shape, generator=gen).float() / 2


def squared_distances(x: np.ndarray) -> np.ndarray:
    """[B, N, N] float64 squared distances / C, by broadcasting."""
    x = x.astype(np.float64)
    return ((x[:, :, None] - x[:, None]) ** 2).mean(-1)


def with_mask_columns(d2: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return d2
    filled = d2.copy()
    filled[np.broadcast_to(~mask[:, None, :], d2.shape)] = (np.sqrt(d2.max()) + 1) ** 2
    return filled


def density(x: np.ndarray, k: int, mask: np.ndarray | None = None) -> np.ndarray:
    d2 = with_mask_columns(squared_distances(x), mask)
    rho = np.exp(-np.sort(d2, -1)[..., :k].mean(-1))
    return rho if mask is None else rho * mask


def delta_loop(x: np.ndarray, rho: np.ndarray, mask: np.ndarray | None, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token by token, straight from the definition."""
    d2 = with_mask_columns(squared_distances(x), mask)
    delta, parent = np.zeros(rho.shape), np.full(rho.shape, -1)
    for b, i in np.ndindex(*rho.shape):
        best = np.inf
        for j in range(rho.shape[1]):
            denser = rho[b, j] > rho[b, i] or (not strict and rho[b, j] == rho[b, i] and j < i)
            if denser and (mask is None or mask[b, j]) and d2[b, i, j] < best:
                best, parent[b, i] = d2[b, i, j], j
        delta[b, i] = np.sqrt(best if parent[b, i] >= 0 else d2[b].max())
    return delta, parent


def cluster_by_rank(x: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Nearest centre of every token (lowest rank on ties), centres to themselves; ranked [B, M]."""
    d2 = squared_distances(x)
    cluster = np.zeros(x.shape[:2], np.int64)
    for b in range(x.shape[0]):
        cluster[b] = d2[b][ranked[b]].argmin(0)
        cluster[b, ranked[b]] = np.arange(ranked.shape[1])
    return cluster
