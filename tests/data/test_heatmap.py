"""Heat-map codec: what is encoded comes back, the flip test undoes a flip."""

from __future__ import annotations

import pytest
import torch

from tore_fast.data import heatmap, wflw
from tore_fast.geometry.skeleton import WHOLEBODY133, mirror_of_pairs


def test_encode_is_the_published_gaussian():
    points = torch.tensor([[20.0, 33.0], [-40.0, 10.0], [50.0, 60.0]])
    target, weight = heatmap.encode_heatmaps(points, torch.tensor([1.0, 1.0, 0.0]), (64, 48))
    assert weight.tolist() == [1.0, 0.0, 0.0]
    assert target[1:].abs().max() == 0
    assert target[0].argmax() == 8 * 48 + 5  # int(33 / 4 + .5) = 8, int(20 / 4 + .5) = 5
    assert target[0, 8, 7] == pytest.approx(torch.exp(torch.tensor(-0.5)).item())
    assert target[0, 8, 5 + 7] == 0  # beyond 3 sigma


@pytest.mark.parametrize(("refine", "limit"), [("none", 0.55), ("quarter", 0.35), ("dark", 0.02)])
def test_decode_brings_subpixel_points_back(refine, limit):
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 30, 2, generator=g) * torch.tensor([36.0, 52.0]) + 6
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    square = (xs - truth[..., 0, None, None]) ** 2 + (ys - truth[..., 1, None, None]) ** 2
    points, score = heatmap.decode_heatmaps(torch.exp(-square / 8), refine)
    assert (points - truth).abs().max() < limit
    assert (score > 0.9).all()


def test_decode_rules_at_borders_and_empty_maps():
    maps = torch.zeros(1, 3, 8, 8)
    maps[0, 1, 1, 1] = 1.0
    maps[0, 1, 1, 2] = 0.5
    maps[0, 2, 4, 4] = 1.0
    maps[0, 2, 4, 5] = 0.5
    maps[0, 2, 3, 4] = 0.5
    points, _ = heatmap.decode_heatmaps(maps)
    assert points[0].tolist() == [[-1, -1], [1, 1], [4.25, 3.75]]  # column 1 is not moved


def test_flip_test_undoes_the_mirror():
    index = mirror_of_pairs(4, [(0, 1)])
    maps = torch.rand(2, 4, 6, 5)
    mirrored = maps[:, list(index)].flip(3)
    back = heatmap.flip_heatmaps(mirrored, index, shift=False)
    assert torch.equal(back, maps)
    shifted = heatmap.flip_heatmaps(mirrored, index)
    assert torch.equal(shifted[..., 1:], maps[..., :-1]) and torch.equal(shifted[..., 0], maps[..., 0])
    symmetric = lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1)  # noqa: E731
    image = torch.rand(1, 3, 6, 5)
    averaged = heatmap.predict_heatmaps(symmetric, image, index)
    want = 0.5 * (symmetric(image) + heatmap.flip_heatmaps(symmetric(image.flip(3)), index))
    assert torch.equal(averaged, want)


@pytest.mark.parametrize(("index", "count", "fixed"), [(WHOLEBODY133.mirror, 133, 11), (wflw.MIRROR, 98, 10)])
def test_flip_tables(index, count, fixed):
    assert sorted(index) == list(range(count))
    # points on the mirror axis: nose (body); chin, bridge, nose tip, lips (face)
    assert sum(i == j for i, j in enumerate(index)) == fixed
