"""Similarity alignment: exact on moved copies, never a reflection, optimal against random perturbations."""

from __future__ import annotations

import torch

from tore_fast.geometry.procrustes import similarity_align


def rotations(n):
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    q[:, :, 0] *= torch.det(q)[:, None]
    return q


def test_moved_copies_align_exactly():
    y = torch.randn(5, 14, 3, dtype=torch.float64)
    x = 0.3 * (y @ rotations(5)) + torch.randn(5, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(similarity_align(x, y), y)


def test_mirror_image_is_not_matched():
    y = torch.randn(3, 14, 3, dtype=torch.float64)
    x = y * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert (similarity_align(x, y) - y).norm(dim=-1).mean() > 0.2


def test_optimal():
    x, y = torch.randn(2, 4, 14, 3, dtype=torch.float64)
    best = (similarity_align(x, y) - y).square().sum((1, 2))
    for _ in range(50):
        s = 1 + 0.1 * torch.randn(4, 1, 1, dtype=torch.float64)
        moved = s * (similarity_align(x, y) @ rotations(4)) + 0.1 * torch.randn(4, 1, 3, dtype=torch.float64)
        assert ((moved - y).square().sum((1, 2)) >= best).all()


def test_one_repeated_point():
    assert similarity_align(torch.ones(1, 5, 3), torch.randn(1, 5, 3)).isfinite().all()
