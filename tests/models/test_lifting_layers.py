"""TPC, TRA, interpolation and the pose blocks against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tore_fast.layers.pose_blocks import DropPath, PoseAttention, attention_column_mean, frame_attention
from tore_fast.layers.tpc import gather_frames, motion_score, top_select, tpc_select, uniform_select
from tore_fast.layers.tra import TokenRecovery, interpolate_frames


def naive_attention(attention: PoseAttention, x: torch.Tensor, axis: str) -> torch.Tensor:
    """One group and one head at a time."""
    b, f, j, c = x.shape
    d = c // attention.heads
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    by_joint = [(n, slice(None), i) for n in range(b) for i in range(j)]
    by_frame = [(n, i) for n in range(b) for i in range(f)]
    for g in by_joint if axis == "frames" else by_frame:
        for h in range(attention.heads):
            s = slice(h * d, (h + 1) * d)
            weight = torch.softmax(q[g][:, s] @ k[g][:, s].T / d**0.5, dim=-1)
            out[g][:, s] = weight @ v[g][:, s]
    return attention.proj(out)


@pytest.mark.parametrize("axis", ["joints", "frames"])
@pytest.mark.parametrize("shape", [(1, 5, 17), (3, 1, 4), (2, 7, 17)])
def test_attention(axis, shape):
    attention = PoseAttention(24, 3).double()
    x = torch.randn(*shape, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, axis), naive_attention(attention, x, axis))


def test_no_copy_between_space_and_time():
    q, k, v = (torch.randn(2, 6, 17, 16) for _ in range(3))
    out = frame_attention(q, k, v, heads=2)
    assert out.is_contiguous() and out.shape == q.shape


def test_attention_column_mean():
    q, k = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    want = torch.zeros(2, 5)
    for b in range(2):
        for j in range(3):
            for h in range(2):
                s = slice(4 * h, 4 * h + 4)
                want[b] += torch.softmax(q[b, :, j, s] @ k[b, :, j, s].T / 2, dim=-1).mean(0) / 6
    torch.testing.assert_close(attention_column_mean(q, k, 2), want)
    torch.testing.assert_close(want.sum(1), torch.ones(2))


def naive_tpc(x: np.ndarray, keep: int, k: int, center: int | None) -> list[int]:
    """Density peaks by nested loops in float64, ties to the lower index."""
    n, c = x.shape
    d = np.array([[np.sqrt(((x[i] - x[j]) ** 2).sum() / c) for j in range(n)] for i in range(n)])
    rho = [float(np.exp(-np.mean(np.sort(d[i] ** 2)[:k]))) for i in range(n)]
    score = []
    for i in range(n):
        denser = [d[i, j] for j in range(n) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        score.append(rho[i] * (min(denser) if denser else d.max()))
    order = sorted(range(n), key=lambda i: (-score[i], i))
    if center is not None:
        order = [center] + [i for i in order if i != center]
    return sorted(order[:keep])


@pytest.mark.parametrize(
    "n, keep, k, center", [(9, 3, 2, None), (9, 3, 2, 4), (20, 7, 3, None), (21, 6, 5, 10), (5, 5, 1, 2), (8, 1, 2, 3)]
)
def test_tpc_select(n, keep, k, center):
    x = torch.randn(2, n, 6, generator=torch.Generator().manual_seed(n)).cumsum(dim=1)
    got = tpc_select(x, keep, k, center).index
    assert got.tolist() == [naive_tpc(row, keep, k, center) for row in x.double().numpy()]


def test_tpc_pairs_of_equal_density_are_decided_by_the_index():
    x = torch.tensor([[[0.0], [0.5], [8.0], [8.5]]])  # two mutual nearest-neighbour pairs, exact in float32
    picks = [tpc_select(x, 2).index.tolist() for _ in range(3)]
    assert picks == [[[0, 2]]] * 3
    swapped = tpc_select(x, 2, noise=torch.tensor([[0.0, 1e-3, 0.0, 1e-3]])).index
    assert swapped.tolist() == [[1, 3]]


def test_tpc_refuses():
    x = torch.zeros(1, 5, 2)
    with pytest.raises(ValueError, match="keep must be in 1..5"):
        tpc_select(x, 6)
    with pytest.raises(ValueError, match="center must be in 0..4"):
        tpc_select(x, 2, center=5)


def test_uniform_select():
    assert uniform_select(243, 81) == list(range(1, 243, 3)) and 121 in uniform_select(243, 81)
    assert uniform_select(9, 9) == list(range(9))
    for f, keep in ((243, 61), (27, 4), (351, 117), (10, 3)):
        index, middle = uniform_select(f, keep, center=(f - 1) // 2), (f - 1) // 2
        assert len(set(index)) == keep and index == sorted(index) and middle in index
        assert 0 <= index[0] and index[-1] < f


def test_top_select_keeps_the_lower_of_equal_scores():
    assert top_select(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2).tolist() == [[1, 2]]
    assert top_select(torch.tensor([[9.0, 3.0, 0.0]]), 2, center=2).tolist() == [[0, 2]]


def test_motion_score_of_one_frame():
    assert motion_score(torch.randn(2, 1, 17, 2)).tolist() == [[0.0], [0.0]]


def test_gather_frames_and_its_gradient():
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    out = gather_frames(x, index)
    assert torch.equal(out[1, 0], x[1, 1]) and torch.equal(out[0, 2], x[0, 5])
    assert torch.autograd.gradcheck(lambda t: gather_frames(t, index), (x,))


@pytest.mark.parametrize("index", [[0, 3, 8], [2, 3, 4], [4, 5, 8], [0, 1, 2]])
def test_interpolation_is_numpys(index):
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    got = interpolate_frames(x, torch.tensor([index]), 9)
    want = np.stack([np.interp(np.arange(9), index, x[0, :, c].numpy()) for c in range(2)], axis=1)
    np.testing.assert_allclose(got[0].numpy(), want, atol=1e-12)
    near = interpolate_frames(x, torch.tensor([index]), 9, "nearest")[0]
    for t in range(9):
        assert torch.equal(near[t], x[0, int(np.argmin([abs(t - i) for i in index]))])


def test_a_prepared_recovery_keeps_its_queries():
    layer = TokenRecovery(16, 4).eval()
    token, x = torch.randn(1, 9, 16), torch.randn(2, 3, 17, 16)
    with torch.no_grad():
        want = layer(x, token)
        for b in range(2):  # the formula: attention of the token over the kept frames of each joint
            for j in (0, 16):
                q, k, v = layer.linear_q(token[0]), layer.linear_k(x[b, :, j]), layer.linear_v(x[b, :, j])
                parts = [slice(4 * h, 4 * h + 4) for h in range(4)]
                heads = [torch.softmax(q[:, s] @ k[:, s].T / 2, -1) @ v[:, s] for s in parts]
                torch.testing.assert_close(want[b, :, j], token[0] + layer.proj(torch.cat(heads, -1)))
        layer.prepare()
        assert torch.equal(layer(x, token), want) and torch.equal(layer(x, token), want)
        assert not torch.allclose(layer(x, 2 * token), want)
        layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})
        assert not layer.prepared and not torch.allclose(layer(x, token), want)


def test_drop_path_drops_whole_groups():
    drop = DropPath(0.5).train()
    x = torch.ones(8, 6, 5, 3)
    for axis, group in (("joints", (0, 1)), ("frames", (0, 2)), (None, (0,))):
        out = drop(x, axis)
        rest = tuple(d for d in range(4) if d not in group)
        assert torch.equal(out.amax(rest), out.amin(rest))
        assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(drop.eval()(x), x)
