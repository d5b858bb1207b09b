"""Test-time augmentation of hands, and the noise test of the NSR."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tore_fast.data.augment import training_crop
from tore_fast.eval.multiscale import PLAIN, VIEWS, MultiScale, aligned_mean, view_crops
from tore_fast.eval.nsr_noise import LEVELS, nsr_noise_test
from tore_fast.models import FastMETRO, FastMETRO_TORE, FastMETROConfig, FastMETROToreConfig


def test_the_views_of_the_paper():
    assert len(VIEWS) == len(set(VIEWS)) == 5 * 19 and VIEWS[0] == PLAIN
    assert {s for s, _ in VIEWS} == {0.7, 0.8, 0.9, 1.0, 1.1} and {r for _, r in VIEWS} == set(range(-90, 91, 10))
    rng = np.random.default_rng(0)
    record = SimpleNamespace(
        image=rng.integers(0, 255, (60, 50, 3)).astype(np.uint8), center=np.array([24.0, 30.0]), scale=0.2
    )
    crops = view_crops(record, 32, [(1.0, 0), (0.7, 20), (1.1, -90)])
    np.testing.assert_array_equal(crops[0], training_crop(record.image, record.center, record.scale, None, 32))
    assert crops.shape == (3, 3, 32, 32) and np.abs(crops[1] - crops[0]).mean() > 0.1


def test_turned_and_scaled_copies_average_to_the_plain_mesh():
    """Copies moved by similarities are brought back; the plain one counts twice (96 terms for 95 views)."""
    g = torch.Generator().manual_seed(1)
    plain = torch.randn(2, 9, 3, generator=g, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    turn = turn * torch.det(turn)
    moved = 1.7 * plain @ turn.T + torch.tensor([0.1, -2.0, 3.0])
    torch.testing.assert_close(aligned_mean(torch.stack([plain, moved, moved * 3])), plain)
    other = plain + 0.01 * torch.randn(plain.shape, generator=g, dtype=torch.float64)
    got = aligned_mean(torch.stack([plain, other]))
    from scipy.spatial import procrustes  # an alignment of another project: unit size and centred

    for i in range(2):
        a, b, _ = procrustes(plain[i].numpy(), other[i].numpy())
        centre, size = plain[i].mean(0).numpy(), np.linalg.norm(plain[i] - plain[i].mean(0))
        np.testing.assert_allclose(got[i].numpy(), (2 * a + b) / 3 * size + centre, atol=1e-9)
    with pytest.raises(ValueError, match=r"\[views, B, N, 3\]"):
        aligned_mean(plain)


def test_the_model_runs_once_per_view():
    class Model(nn.Module):
        def forward(self, x):
            return SimpleNamespace(vertices=x.flatten(1)[:, :12].unflatten(1, (4, 3)))

    crops = torch.randn(2, 3, 3, 4, 4)
    regressor = torch.rand(3, 4)
    out = MultiScale(Model(), lambda vertices: regressor @ vertices)(crops)
    meshes = torch.stack([crops[:, k].flatten(1)[:, :12].unflatten(1, (4, 3)) for k in range(3)])
    torch.testing.assert_close(out.vertices, aligned_mean(meshes))
    torch.testing.assert_close(
        out.mesh_joints, aligned_mean(regressor @ meshes)
    )  # aligned by themselves, as officially
    assert not torch.allclose(out.mesh_joints, regressor @ out.vertices, atol=1e-3)


def test_noise_of_the_nsr_grows_with_its_level():
    small = dict(backbone=None, feature_dim=16, dim_1=32, dim_2=16, feedforward_1=32, feedforward_2=16)
    model = FastMETRO_TORE(FastMETROToreConfig(**small, dim_3=16, feedforward_3=16)).eval()
    x = torch.randn(2, 16, 7, 7)
    state = torch.random.get_rng_state()
    moved = nsr_noise_test(model, x, repeats=2)
    assert tuple(moved) == LEVELS and 0 < moved[0.05] < moved[0.075] < moved[0.1]
    assert torch.equal(state, torch.random.get_rng_state()) and moved == nsr_noise_test(model, x, repeats=2)
    assert nsr_noise_test(model, x, (0.0,)) == {0.0: 0.0}
    with pytest.raises(ValueError, match="FastMETRO has no NSR"):
        nsr_noise_test(FastMETRO(FastMETROConfig(**small)), x)
