"""Layer merging: the formula, the search's promises, plans on real stacks, resume, CKA."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tore_fast.layers.eclm import ECLMPlan, Evaluation, cka_matrix, eclm_search, linear_cka, merge_tensors
from tore_fast.models import create_model, load, save
from tore_fast.pipelines import merge

HOST = dict(
    embed_dim=32,
    depth=6,
    num_heads=2,
    decoder_depth=1,
    decoder_heads=2,
    decoder_dim_head=8,
    decoder_mlp_dim=16,
    decoder_dim=24,
)


def test_merge_formula():
    a, b, c = (torch.randn(4) for _ in range(3))
    torch.testing.assert_close(merge_tensors([a, b, c]), a + (b - a) + (c - a))
    assert torch.equal(merge_tensors([a, b]), b)  # a pair drops the lower layer
    low = [t.half() for t in (a, b, c)]
    wide = (low[1].float() + low[2].float() - low[0].float()).half()
    assert torch.equal(merge_tensors(low), wide)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(-0.05, 0.4), min_size=1, max_size=12), tau=st.floats(0.01, 0.5), tail=st.booleans())
def test_the_merged_model_stays_within_tau_of_the_original(weights, tau, tail):
    calls = []

    def error(groups):
        calls.append(groups)
        return 10 + sum(weights[g[-1]] * (len(g) - 1) for g in groups)

    result = eclm_search(len(weights), error, tau, tail_commit=tail)
    assert len(calls) == len(weights)  # L - 1 evaluations and the base
    assert error(result.plan.groups) - result.base < tau
    assert result.plan.num_original == len(weights)


def test_replayed_evaluations_give_the_same_plan_without_work():
    weights = [0, 0.2, 0.01, 0.3, 0.02, 0.05, 0.01]

    def error(groups):
        return sum(weights[g[-1]] * (len(g) - 1) for g in groups)

    want = eclm_search(7, error, 0.1)
    asked = []
    again = eclm_search(7, lambda g: asked.append(g) or error(g), 0.1, base=want.base, known=want.trace[:4])
    assert again.plan == want.plan and len(asked) == len(want.trace) - 4
    with pytest.raises(ValueError, match="interrupted run"):
        eclm_search(7, error, 0.1, base=0.0, known=[Evaluation(2, 4, 0.0, True)])


def test_plan_rewrites_a_state_dict(tmp_path):
    state = {f"backbone.blocks.{i}.w": torch.full((2,), float(i * i)) for i in range(4)} | {"head.b": torch.ones(1)}
    plan = ECLMPlan(((0,), (1, 2, 3)))
    out = plan.apply(state)
    assert set(out) == {"backbone.blocks.0.w", "backbone.blocks.1.w", "head.b"}
    assert out["backbone.blocks.1.w"][0] == 4 + 9 - 1
    plan.save(tmp_path / "plan.json")
    assert ECLMPlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(ValueError, match="4 blocks"):
        plan.apply({k: v for k, v in state.items() if "3" not in k})
    with pytest.raises(ValueError, match="in order"):
        ECLMPlan(((1,), (0,)))


def calibrated(measure="angle", cache_mb=64.0, depth=6):
    torch.manual_seed(0)
    model = create_model("hmr2_vits", **{**HOST, "depth": depth}).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 * p.shape[-1] ** -0.5 if p.dim() > 1 else 0.1)
    batches = [torch.randn(2, 3, 256, 256), torch.randn(1, 3, 256, 256)]
    return model, merge.host_calibration(model, batches, None, measure, cache_mb=cache_mb)


def test_cached_errors_are_those_of_the_merged_model():
    model, calibration = calibrated()
    _, sparse = calibrated(cache_mb=0.1)
    for groups in (((0,), (1,), (2,), (3,), (4, 5)), ((0,), (1, 2, 3), (4, 5)), ((0, 1, 2, 3, 4, 5),)):
        merged = merge.apply_plan(model, ECLMPlan(groups))
        assert len(merged.backbone.blocks) == len(groups)
        values = []
        with torch.no_grad():
            for crops, _ in calibration.batches:
                from tore_fast.geometry.rotation import geodesic_angle

                values.append(geodesic_angle(merged(crops).rotations, model(crops).rotations).rad2deg().mean(1))
        want = float(torch.cat(values).mean())
        assert calibration.error(groups) == pytest.approx(want, rel=1e-4)
        assert sparse.error(groups) == pytest.approx(want, rel=1e-4)
    before = calibration.block_runs
    calibration.error(((0,), (1,), (2,), (3,), (4, 5)))
    assert calibration.block_runs - before == 2  # one merged block per batch, the prefix came from the cache
    assert calibration.error(ECLMPlan.identity(6).groups) == pytest.approx(0, abs=1e-3)


def test_search_on_a_host_resumes_and_saves(tmp_path):
    model, calibration = calibrated()
    tau = 2.0
    want = merge.run_search(calibration, None, tau)

    class Stop(Exception):
        pass

    def stop(step, number):
        if number == 2:
            raise Stop

    with pytest.raises(Stop):
        merge.run_search(calibration, tmp_path, tau, on_step=stop)
    done = calibration.evaluations
    got = merge.run_search(calibration, tmp_path, tau)
    assert got.plan == want.plan and got.trace == want.trace
    assert calibration.evaluations - done == len(want.trace) - 2
    with pytest.raises(ValueError, match="another folder"):
        merge.run_search(calibration, tmp_path, tau / 2)
    merged = merge.apply_plan(model, got.plan)
    save(merged, tmp_path / "model", "hmr2_vits", eclm=got.to_json())
    again = load(tmp_path / "model")
    img = torch.randn(1, 3, 256, 256)
    assert len(again.backbone.blocks) == got.plan.num_layers
    torch.testing.assert_close(again(img).pose, merged(img).pose, atol=0, rtol=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eclm"]["groups"]


def test_a_stack_of_anything_residual_can_be_merged():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(5, 5)

        def forward(self, x):
            return x + 0.1 * self.f(x)

    blocks = nn.ModuleList(Half() for _ in range(5))
    batches = [torch.randn(7, 5)]
    calibration = merge.StackCalibration(
        blocks, lambda b: b, lambda x, b: x, batches, lambda a, b: (a - b).norm(dim=-1)
    )
    result = merge.run_search(calibration, tau=0.5)
    assert result.base == 0 and calibration.error(result.plan.groups) < 0.5


def test_cka():
    x = torch.randn(200, 6)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.randn(200, 6)) < 0.2
    few = torch.randn(5, 40)
    assert linear_cka(few, few * 2) == pytest.approx(1, abs=1e-6)  # the Gram-matrix branch
    wide = linear_cka(torch.randn(300, 4), x.repeat(2, 1)[:300])
    assert 0 <= wide <= 1
    m = cka_matrix([x, x + 0.1 * torch.randn(200, 6), torch.randn(200, 6)], max_rows=150)
    assert torch.equal(m, m.T) and m[0, 1] > m[0, 2] and torch.all(m.diagonal() == 1)
    with pytest.raises(ValueError, match="same n"):
        linear_cka(x, x[:10])
