"""Video pose hosts: every variant runs, prunes what it says, is deterministic, and matches the papers' sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tore_fast.models import create_model, list_models, load, model_entry, save
from tore_fast.models._count import count_clip, count_model, shipped_counts
from tore_fast.models.lifting._base import center_pose
from tore_fast.models.lifting.hot import host_by_name

TINY = {
    "mixste": dict(frames=9, channels=32, depth=3, heads=4, mlp_hidden=48),
    "motionbert": dict(frames=9, channels=32, rep_channels=40, depth=2, heads=4, mlp_hidden=48),
    "mhformer": dict(frames=9, channels=32, heads=4, mlp_hidden=48),
    "motionagformer": dict(frames=9, channels=32, rep_channels=40, depth=3, heads=4),
}
NAME = {
    "mixste": "mixste_243",
    "motionbert": "motionbert_lite_243",
    "mhformer": "mhformer_351",
    "motionagformer": "motionagformer_243",
}
HOT = dict(prune_block=1, keep_frames=4, recovery="tra")
TPC = dict(prune_block=1, keep_frames=4, keep_center=True)


def tiny(host: str, **fields):
    torch.manual_seed(1)
    model = create_model(NAME[host], **{**TINY[host], **fields}).eval()
    with torch.no_grad():  # zero-initialised embeddings would hide where they are added
        for name, p in model.named_parameters():
            if "token" in name or "pos_embed" in name.lower():
                p.normal_(std=0.5)
    return model


def clip(model, batch=2):
    return torch.randn(batch, model.config.frames, 17, model.in_channels, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("host", TINY)
@pytest.mark.parametrize("fields", [{}, HOT, TPC], ids=["base", "hot", "tpc"])
def test_two_passes_are_identical_and_items_independent(host, fields):
    model = tiny(host, **fields)
    x = clip(model, 3)
    with torch.inference_mode():
        a, b = model(x), model(x)
        assert torch.equal(a.pose, b.pose)
        assert a.pose.shape == (3, model.config.output_frames, 17, 3)
        alone = model(x[1:2])
        torch.testing.assert_close(alone.pose, a.pose[1:2], rtol=1e-4, atol=1e-5)
        if fields:
            assert torch.equal(a.index, b.index) and torch.equal(alone.index, a.index[1:2])
            assert (a.index.diff(dim=1) > 0).all() and a.index.shape == (3, 4)
            assert torch.equal(model(x, index=a.index).pose, a.pose)
        if fields is TPC:
            assert (a.index == 4).any(dim=1).all()
            torch.testing.assert_close(center_pose(a, 9)[0], a.pose[0, (a.index[0] == 4).nonzero()[0, 0]])


@pytest.mark.parametrize("host", TINY)
@pytest.mark.parametrize("fields", [{}, HOT, TPC], ids=["base", "hot", "tpc"])
@pytest.mark.parametrize("products", ["bfloat16", "float16", "bfloat16 weights", "packed"])
def test_two_passes_are_identical_in_low_precision_too(host, fields, products):
    model = tiny(host, **fields)
    x = clip(model, 3)
    if products == "packed":
        model.prepare()
    elif products == "bfloat16 weights":
        model, x = model.bfloat16(), x.bfloat16()
    low = getattr(torch, products, torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", low, enabled=products in ("bfloat16", "float16")):
        first = model(x)
        _litter = [torch.full((n,), torch.nan) for n in range(1, 4000, 97)]  # other memory for the second pass
        second = model(x.clone())
    assert torch.equal(first.pose, second.pose) and torch.isfinite(first.pose).all()
    if fields:
        assert torch.equal(first.index, second.index)


@pytest.mark.parametrize("host", TINY)
@pytest.mark.parametrize("fields", [{}, HOT, TPC], ids=["base", "hot", "tpc"])
def test_a_batch_of_nothing_gives_nothing(host, fields):
    model = tiny(host, **fields)
    with torch.no_grad():
        assert model(clip(model, 0)).pose.shape == (0, *model(clip(model, 2)).pose.shape[1:])


@pytest.mark.parametrize("host", TINY)
@pytest.mark.parametrize("fields", [HOT, TPC], ids=["hot", "tpc"])
def test_gradients_reach_every_parameter(host, fields):
    model = tiny(host, **fields).train()
    model(clip(model)).pose.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


@pytest.mark.parametrize("host", TINY)
@pytest.mark.parametrize("pruning", ["uniform", "attention", "motion"])
def test_other_rules_and_recoveries(host, pruning):
    model = tiny(host, prune_block=1, keep_frames=4, pruning=pruning, recovery="linear", keep_center=True)
    x = clip(model)
    with torch.inference_mode():
        got = model(x)
    assert got.pose.shape == (2, 9, 17, 3) and (got.index == 4).any(dim=1).all()
    if pruning == "motion":
        step = (x[:, 1:, :, :2] - x[:, :-1, :, :2]).norm(dim=-1).mean(dim=-1)
        score = torch.cat([step[:, :1], step], dim=1)
        score[:, 4] = 100
        order = score.sort(dim=1, descending=True, stable=True).indices  # frames 0 and 1 tie: the lower one goes first
        assert torch.equal(got.index, order[:, :4].sort(dim=1).values)


def test_noise_and_index_change_what_they_should():
    model = tiny("mixste", **HOT)
    x = clip(model, 1)
    noise = torch.zeros(1, 9)
    noise[:, [0, 2, 5, 7]] = torch.tensor([50.0, 40.0, 30.0, 20.0])
    with torch.inference_mode():
        assert model(x, density_noise=noise).index[0].tolist() == [0, 2, 5, 7]
        plain = model(x, index=torch.tensor([[1, 3, 5, 7]]))
        other = model(x, index=torch.tensor([[1, 3, 5, 8]]))
    assert not torch.allclose(plain.pose, other.pose)


def test_keeping_every_frame_changes_nothing():
    base, kept = tiny("mixste"), tiny("mixste", prune_block=1, keep_frames=9)
    kept.load_state_dict(base.state_dict())
    x = clip(base)
    with torch.inference_mode():
        got = kept(x)
        assert torch.equal(got.index[0], torch.arange(9))
        assert torch.equal(got.pose, base(x).pose)


@pytest.mark.parametrize("host", TINY)
def test_saved_and_loaded(host, tmp_path):
    model = tiny(host, **HOT)
    save(model, tmp_path, NAME[host])
    again = load(tmp_path)
    assert again.config == model.config
    with torch.inference_mode():
        assert torch.equal(again(clip(model)).pose, model(clip(model)).pose)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("mixste_27", dict(prune_block=0, keep_frames=9), "prune_block must be in 1..7, got 0"),
        ("mixste_27", dict(prune_block=8, keep_frames=9), "prune_block must be in 1..7, got 8"),
        ("motionbert_lite_27", dict(prune_block=5, keep_frames=9), "prune_block must be in 0..4"),
        ("mhformer_27", dict(prune_block=2, keep_frames=9), "prune_block must be in 0..1"),
        ("mhformer_27", dict(frames=25), "divisible by 9"),
        ("motionbert_lite_27", dict(frames=300), "exceeds max_frames 243"),
        ("mixste_27", dict(prune_block=3, keep_frames=28), "keep_frames must be in 1..27"),
        ("mixste_27", dict(prune_block=3), "keep_frames must be in 1..27"),
        ("mixste_27", dict(keep_frames=9), "without prune_block"),
        ("mixste_27", dict(recovery="tra"), "without prune_block"),
        ("mixste_27", dict(prune_block=3, keep_frames=9, recovery="cubic"), "recovery must be one of"),
        ("mixste_27", dict(prune_block=3, keep_frames=9, pruning="random"), "pruning must be one of"),
        ("mixste_27", dict(prune_block=3, keep_frames=9, knn=40), "knn must be in 1..27"),
        ("mixste_27", dict(heads=7), "not divisible by heads 7"),
        ("mixste_27", dict(pruning="motion"), "pruning given without prune_block"),
        ("mixste_27", dict(prune_block=3, keep_frames=9, tie="random"), "tie must be one of"),
    ],
)
def test_impossible_settings_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **fields)


def test_wrong_input_is_refused():
    model = tiny("mixste", **TPC)
    with pytest.raises(ValueError, match=r"x must be \[B, 9, 17, 2\], got \[1, 8, 17, 2\]"):
        model(torch.zeros(1, 8, 17, 2))
    with pytest.raises(ValueError, match=r"index must be \[1, 4\]"):
        model(torch.zeros(1, 9, 17, 2), index=torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="prunes nothing"):
        tiny("mixste")(torch.zeros(1, 9, 17, 2), density_noise=torch.zeros(1, 9))


PAPER_NAMES = [n for n in list_models() if model_entry(n).family in TINY and model_entry(n).paper is not None]
# 2 x multiply-adds (G) that the official modules were measured to have, by the papers' rule and of all products
OFFICIAL = {
    "mixste_243": (277.248, 294.85),
    "mixste_81": (92.416, 94.63),
    "mixste_147": (167.718, 174.43),
    "hot_mixste_243": (167.516, 176.18),
    "tpc_mixste_243": (161.733, 169.71),
    "tpc_mixste_243_n7f61": (251.288, 266.85),
    "motionbert_lite_243": (131.094, 142.09),
    "hot_motionbert_243": (63.211, 66.86),
    "tpc_motionbert_243": (61.037, None),
    "tpc_motionbert_243_n2f121": (91.388, None),
    "mhformer_351": (14.146, 16.44),
    "tpc_mhformer_351": (8.220, 9.17),
}


def test_the_paper_rows_are_registered():
    assert set(PAPER_NAMES) == set(OFFICIAL)


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_sizes_of_the_paper(name):
    paper, counts = model_entry(name).paper, count_model(name)
    by_rule, products = OFFICIAL[name]
    assert counts.params / 1e6 == pytest.approx(paper.params_m, rel=2e-4)
    assert 2 * counts.paper_macs / 1e9 == pytest.approx(by_rule, abs=2e-3)
    assert 2 * counts.paper_macs / 1e9 == pytest.approx(2 * paper.gmacs, abs=1.1e-2)
    if products is not None:  # TRA's query is projected once here, once per joint there
        saved = 32 * create_model(name).config.channels ** 2 * 243 / 1e9 if "hot" in name else 0.0
        assert 2 * counts.macs / 1e9 + saved == pytest.approx(products, rel=1e-3)
    assert counts == shipped_counts()[name], "run tools/models_page.py"


def test_every_registered_name_builds():
    names = [n for n in list_models() if model_entry(n).family in TINY]
    for kind in ("", "hot_", "tpc_"):
        assert {f"{kind}{host}_{f}" for host in ("mixste", "motionagformer") for f in (27, 81, 243)} <= set(names)
        assert {f"{kind}mhformer_{f}" for f in (27, 81, 243, 351)} <= set(names)
    with torch.device("meta"):
        for name in names:
            model = create_model(name)
            assert model_entry(name).input_shape == (model.config.frames, 17, model.in_channels)


# 2 x multiply-adds (G) of the official modules by a profiler that also counts norms, 4 per element
@pytest.mark.parametrize("name, measured", [("motionagformer_243", 96.60), ("hot_motionagformer_243", 60.95)])
def test_sizes_of_motionagformer(name, measured):
    config = create_model(name, channels=4, rep_channels=4).config
    full = config.depth if config.prune_block is None else config.prune_block
    tokens = 17 * (full * 243 + (config.depth - full) * (config.keep_frames or 0))
    norms = 4 * 128 * (10 * tokens + 17 * (config.keep_frames or 243))  # 8 layer and 2 batch norms a layer, then one
    assert 2 * (count_model(name).paper_macs + norms) / 1e9 == pytest.approx(measured, abs=1e-2)


def test_layers_are_counted_whatever_products_they_become():
    with torch.device("meta"):
        model = create_model("motionagformer_27", channels=8)
    assert count_clip(model) == count_clip(model.requires_grad_(False))


@pytest.mark.parametrize("name", [n for n in list_models() if host_by_name(n) is not None])
def test_the_rule_of_names_gives_what_is_registered(name):
    ruled, registered = host_by_name(name), model_entry(name)
    with torch.device("meta"):
        assert ruled.build().config == registered.build().config
    assert (ruled.family, ruled.input_shape, ruled.tags) == (registered.family, registered.input_shape, registered.tags)


def test_names_of_any_window_and_pruning():
    with torch.device("meta"):
        config = create_model("hot_mixste_135_n2f40").config
        assert (config.frames, config.prune_block, config.keep_frames, config.recovery) == (135, 2, 40, "tra")
        config = create_model("tpc_motionbert_full_351", depth=2).config
        assert (config.max_frames, config.keep_frames, config.channels, config.keep_center) == (351, 117, 512, True)
        assert create_model("hot_mhformer_9").config.keep_frames == 3
    assert list_models("mixste_5") == ["mixste_5"] and list_models("mixste_0") == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("hot_mixste_243_n8f81", "prune_block must be in 1..7, got 8"),
        ("tpc_motionbert_81_n5f27", "prune_block must be in 0..4, got 5"),
        ("hot_mhformer_351_n2f117", "prune_block must be in 0..1, got 2"),
        ("tpc_mixste_27_n3f28", r"keep_frames must be in 1..27 \(frames\), got 28"),
        ("mhformer_25", "divisible by 9"),
        ("mixste_27_n3f9", "begin with hot_"),
        ("hot_mixsta_243", "did you mean hot_mixste_243"),
        ("hot_mixste_243_f81", "no model"),
    ],
)
def test_impossible_names_are_refused(name, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name)


def test_compiles_without_breaks():
    model = tiny("mixste", **HOT)
    x = clip(model, 1)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)  # inductor itself takes 40 s here
    assert torch.equal(got.index, want.index)
    torch.testing.assert_close(got.pose, want.pose, rtol=1e-4, atol=1e-5)


def test_exports():
    model = tiny("motionbert", **TPC)
    x = clip(model, 1)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        got = program.module()(x)
        assert torch.equal(got.pose, model(x).pose)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    x, index = clip(tiny("mixste"), 1), torch.tensor([[0, 2, 4, 8]])
    want = tiny("mixste", **HOT)(x, index=index).pose
    got = tiny("mixste", **HOT).to(dtype)(x.to(dtype), index=index).pose
    assert got.dtype == dtype
    assert (got.float() - want).norm() < (1e-5 if dtype == torch.float64 else 5e-2) * want.norm()


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        create_model("mixste_9").config.frames = 3


@pytest.mark.parametrize("host", TINY)
def test_under_autocast_poses_are_float32(host):
    model = tiny(host, **HOT)
    x = clip(model)
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x, index=exact.index)
    assert low.pose.dtype == torch.float32 and not torch.equal(low.pose, low.pose.bfloat16().float())
    assert (low.pose - exact.pose).norm() < 0.05 * exact.pose.norm()
