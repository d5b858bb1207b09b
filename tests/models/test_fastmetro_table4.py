"""FastMETRO's table 4: every row by its name, its parameters, and what its option does to the attention."""

from __future__ import annotations

import pytest
import torch

from tore_fast.layers.attention import HeadPattern, attend, attention_weights
from tore_fast.models import create_model
from tore_fast.ops import mesh_topology
from tore_fast.train.mesh_loss import PRESETS

ROWS = {  # millions of parameters, trunk included
    "fastmetro_s_r50_paper": 32.7,
    "fastmetro_s_r50_paper_nomask": 32.7,
    "fastmetro_s_r50_paper_graph": 33.1,
    "fastmetro_s_r50_paper_halfmask": 32.7,
    "fastmetro_s_r50_paper_learned": 45.4,
    "fastmetro_s_r50_paper_wide": 39.5,
}
SMALL = dict(backbone=None, feature_dim=16, dim_1=32, dim_2=16, feedforward_1=32, feedforward_2=32, heads=4)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_within_a_percent(name):
    with torch.device("meta"):
        count = sum(p.numel() for p in create_model(name).parameters()) / 1e6
    assert count == pytest.approx(ROWS[name], rel=0.01)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_learns_and_prepares(name):
    torch.manual_seed(0)
    sizes = SMALL | (dict(dim_2=32) if name.endswith("wide") else {})
    model = create_model(name, **sizes)
    out = model(torch.randn(2, 16, 7, 7))
    out.vertices.square().sum().backward()
    model.eval()
    x = torch.randn(2, 16, 7, 7)
    with torch.inference_mode():
        plain = model(x)
        maps = model(x, return_attention=True)
        torch.testing.assert_close(maps.vertices, plain.vertices, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.prepare()(x).vertices, plain.vertices, rtol=1e-4, atol=1e-5)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not [n for n in without if "cam" not in n], without  # the camera's only reader is out.camera


def vertex_share(model) -> float:
    """Share of attention that vertices give to vertices that are no neighbours of theirs."""
    with torch.inference_mode():
        weights = model.eval()(torch.randn(1, 16, 7, 7), return_attention=True).attention["decoder_1"][0, 0]
    joints = model.config.num_joints
    far = ~model.pattern().dense_mask()
    return float(weights[joints:][far[joints:]].sum() / weights[joints:].sum())


def test_what_the_masks_leave_open():
    torch.manual_seed(0)
    share = {
        m: vertex_share(create_model("fastmetro_s_r50_paper", masking=m, **SMALL)) for m in ("all", "half", "none")
    }
    assert share["all"] == 0
    assert share["none"] > 0.9
    assert share["half"] == pytest.approx(share["none"] / 2, rel=0.05)


@pytest.mark.parametrize("masked", [1, 2, 3])
def test_a_pattern_in_some_heads_is_dense_attention_with_that_mask(masked):
    torch.manual_seed(0)
    ring = mesh_topology(torch.eye(9).roll(1, 0) + torch.eye(9).roll(-1, 0), joints=2)
    q, k, v = (torch.randn(2, 4, 11, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 11, 11, dtype=torch.bool)
    mask[:masked] = ring.dense_mask()
    pattern = HeadPattern(ring, masked)
    assert torch.equal(pattern.dense_mask(4), mask)
    want = attention_weights(q, k, mask) @ v
    got = attend(q, k, v, pattern)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    g = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), g), torch.autograd.grad(want, (q, k, v), g)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_graph_blocks_mix_neighbours_only():
    torch.manual_seed(0)
    model = create_model("fastmetro_s_r50_paper_graph", **SMALL)
    graph, joints = model.transformer_1.decoder.layers[0].graph, model.config.num_joints
    x = torch.randn(1, joints + model.mesh.counts[0], 32, requires_grad=True)
    out = graph(x)
    assert torch.equal(out[:, :joints], x[:, :joints])
    (grad,) = torch.autograd.grad(out[0, joints + 5].sum(), x)
    touched = grad[0].abs().sum(-1).nonzero()[:, 0] - joints
    assert touched.tolist() == sorted(model.mesh.adjacency[5].indices.tolist())


def test_printed_loss_reads_the_fine_mesh_only():
    printed = PRESETS["fastmetro_printed"]
    assert printed.levels == (0, 0, 1) and printed.surface == 0
    assert PRESETS["fastmetro"].levels == (0.25, 0.5, 0.25) and PRESETS["fastmetro"].surface > 0


def test_wrong_options():
    for wrong in (dict(masking="some"), dict(progressive=False), dict(masking="half", heads=1)):
        with pytest.raises(ValueError, match="FastMETRO"):
            create_model("fastmetro_s_r50", backbone=None, **wrong)
    with pytest.raises(ValueError, match="learned_fine"):
        create_model("fastmetro_s_r50_hand", backbone=None, learned_fine=True)
