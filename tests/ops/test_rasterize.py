"""rasterize: implementations against an independent loop and each other, ties, watertightness, registration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tore_fast.ops import BackendUnavailable, rasterize
from tore_fast.ops.rasterize import BACKENDS, why_not


def impls(x):
    return ["reference", *(b for b in BACKENDS if why_not(b, x) is None)]


def random_mesh(batch: int, count: int, faces: int, size: float, seed: int = 0, device: str = "cpu"):
    g = torch.Generator().manual_seed(seed)
    v = torch.rand(batch, count, 3, generator=g) * torch.tensor([1.4 * size, 1.4 * size, 3.0]) - 0.2 * size
    picks = torch.rand(faces, count, generator=g).argsort(1)[:, :3]  # three different corners
    return v.to(device), picks.to(device)


def slow(v: np.ndarray, faces: np.ndarray, height: int, width: int):
    """float64 loop with plain half-plane tests: no snapping, no fill rule."""
    best, depth, margin = (
        -np.ones((height, width), int),
        np.full((height, width), np.inf),
        np.full((height, width), 9e9),
    )
    for f, (i, j, k) in enumerate(faces):
        a, b, c = v[i].astype(float), v[j].astype(float), v[k].astype(float)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        for y in range(height):
            for x in range(width):
                p = np.array([x + 0.5, y + 0.5])
                w = np.array(
                    [(q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]) for q, r in ((b, c), (c, a), (a, b))]
                )
                margin[y, x] = min(margin[y, x], np.abs(w).min() / np.hypot(*(b - a)[:2]))
                w = w / area
                if (w >= 0).all() and (z := w @ np.array([a[2], b[2], c[2]])) < depth[y, x]:
                    best[y, x], depth[y, x] = f, z
    return best, depth, margin


def test_against_plain_loop(device):
    v, faces = random_mesh(1, 12, 9, 10.0, device=device)
    best, depth, margin = slow(v[0].cpu().numpy(), faces.cpu().numpy(), 11, 13)
    clear = torch.from_numpy(margin > 0.02)  # centres away from every edge, where snapping cannot matter
    assert clear.float().mean() > 0.5 and (best[clear.numpy()] >= 0).any()
    for impl in impls(v):
        got = rasterize(v, faces, 11, 13, impl=impl)
        assert torch.equal(got.face_index[0].cpu()[clear].long(), torch.from_numpy(best)[clear])
        torch.testing.assert_close(
            got.depth[0].cpu()[clear].double(), torch.from_numpy(depth)[clear], atol=0.02, rtol=0
        )


@pytest.mark.parametrize(
    "batch,count,faces,height,width",
    [
        (1, 3, 1, 1, 1),
        (3, 40, 63, 17, 31),
        (2, 300, 445, 128, 64),
        (0, 5, 4, 8, 8),
        (2, 5, 0, 8, 8),
        (1, 60, 30, 600, 40),
    ],
)
def test_implementations_agree_bit_for_bit(device, batch, count, faces, height, width):
    v, f = random_mesh(batch, count, faces, float(max(height, width)), seed=faces, device=device)
    want = rasterize(v, f, height, width, impl="reference")
    assert want.face_index.shape == (batch, height, width) and want.barycentric.shape == (batch, height, width, 3)
    for impl in impls(v):
        got = rasterize(v, f, height, width, impl=impl)
        for a, b in zip(got, want):
            assert torch.equal(a, b), impl


def test_weights_give_back_the_pixel_centre(device):
    v, f = random_mesh(2, 30, 25, 40.0, device=device)
    for impl in impls(v):
        out = rasterize(v, f, 40, 40, impl=impl)
        hit = out.face_index >= 0
        assert hit.any() and not hit.all()
        b, row, column = hit.nonzero().T
        corners = v[b[:, None], f[out.face_index[hit].long()]]  # [N, 3, 3]
        point = (out.barycentric[hit][..., None] * corners).sum(1)
        # corners are moved by up to 1/512 pixel; in a sliver the weights answer by much more, the point does not
        torch.testing.assert_close(point[:, 0], column + 0.5, atol=4e-3, rtol=0)
        torch.testing.assert_close(point[:, 1], row + 0.5, atol=4e-3, rtol=0)
        torch.testing.assert_close(point[:, 2], out.depth[hit])
        assert (out.depth[~hit] == torch.inf).all() and (out.barycentric[~hit] == 0).all()


def test_shared_edges_are_covered_once(device):
    """A fan round a pixel centre with edges through other centres: every pixel of the square exactly once."""
    ring = [(0, 0), (4, 0), (8, 0), (8, 4), (8, 8), (4, 8), (0, 8), (0, 4)]
    v = torch.tensor([[(x + 0.5, y + 0.5, 1.0) for x, y in [(4, 4), *ring]]], device=device)
    f = torch.tensor([(0, i + 1, (i + 1) % 8 + 1) for i in range(8)], device=device)
    for impl in impls(v):
        counts = sum((rasterize(v, f[i : i + 1], 10, 10, impl=impl).face_index >= 0).int() for i in range(8))
        assert counts.max() == 1 and counts.sum() == 64  # 9 x 9 centres in the square, one side and one end not owned


def test_ties_and_depth_order(device):
    quad = torch.tensor([[0.0, 0, 5], [9, 0, 5], [0, 9, 5], [0, 0, -2], [9, 0, -2], [0, 9, -2]], device=device)[None]
    f = torch.tensor([[0, 1, 2]] * 3, device=device)
    for impl in impls(quad):
        out = rasterize(quad, f, 4, 4, impl=impl)
        assert (out.face_index == 0).all()
        nearer = rasterize(quad, torch.cat((f, f + 3)), 4, 4, impl=impl)
        assert (nearer.face_index == 3).all() and torch.allclose(nearer.depth, torch.full_like(nearer.depth, -2.0))


def test_bad_corners_are_left_out(device):
    v = torch.tensor([[0.0, 0, 1], [9, 0, 1], [0, 9, 1]], device=device).repeat(4, 1, 1)
    v[1, 0, 0], v[2, 1, 2], v[3, 2, 1] = torch.nan, torch.inf, 3e6
    for impl in impls(v):
        hit = (
            (rasterize(v, torch.tensor([[0, 1, 2]], device=device), 4, 4, impl=impl).face_index >= 0).flatten(1).any(1)
        )
        assert hit.tolist() == [True, False, False, False]


def test_opcheck(device):
    v, f = random_mesh(2, 20, 15, 16.0, device=device)
    if impls(v) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], v)}")
    torch.library.opcheck(torch.ops.tore_fast.rasterize, (v, f.int(), 16, 12))


@pytest.mark.cpu_kernels
def test_errors():
    v, f = random_mesh(1, 4, 2, 8.0)
    with pytest.raises(ValueError, match=r"rasterize: vertices_px must be \[B, V, 3\], got \[4, 3\]"):
        rasterize(v[0], f, 4, 4)
    with pytest.raises(ValueError, match="not differentiable"):
        rasterize(v.requires_grad_(), f, 4, 4)
    v = v.detach()
    with pytest.raises(ValueError, match="height and width"):
        rasterize(v, f, 0, 4)
    with pytest.raises(TypeError, match="faces must be int32 or int64"):
        rasterize(v, f.float(), 4, 4)
    for impl in impls(v):
        with pytest.raises((ValueError, RuntimeError), match="rasterize: faces"):
            rasterize(v, f + 4, 4, 4, impl=impl)
    with pytest.raises(BackendUnavailable, match="impl='cuda' cannot run here"):
        rasterize(v, f, 4, 4, impl="cuda")
