"""TCFormer models: sizes, multiply-adds, determinism, part-wise clustering, ablations, official files, export,
compile."""

from __future__ import annotations

import argparse
import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tore_fast.geometry.rotation import rot6d_to_matrix
from tore_fast.layers._tokens import grid_tokens
from tore_fast.layers.ctm import CTM, part_order, topk_clusters
from tore_fast.layers.token_conv import TokenConv
from tore_fast.models import create_model, list_models, load, model_entry, save
from tore_fast.models._count import count_macs
from tore_fast.models.keypoints.layouts import convert_tcformer, is_mmpose, tcformer_config
from tore_fast.models.keypoints.ppt import keep_ratio_at

TWO_STAGES = dict(
    embed_dims=(16, 32), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(1, 1), sr_ratios=(8, 4), sample_ratios=(0.25,)
)
TINY = dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1))


def tiny(name="tcformer_light", **changes):
    return create_model(name, **{**TINY, **changes}).eval()


@pytest.mark.parametrize(
    ("name", "size", "params_m", "gmacs", "clustering"),
    [
        ("tcformer_light", (224, 224), 14.232, 3.84, 1.49),
        ("tcformer_base", (224, 224), 25.595, 5.83, 1.49),
        ("tcformer_large", (224, 224), 62.819, 12.15, 1.49),
        ("tcformer_base_wholebody", (256, 192), 27.782, 8.71, 1.43),
        ("tcformer_large_wholebody", (384, 288), 65.006, 38.65, 7.22),
    ],
)
def test_parameters_and_macs(name, size, params_m, gmacs, clustering):
    """What the official counter gives for the official models, within 1 %."""
    with FakeTensorMode():  # shapes alone count
        model = create_model(name)
        macs = count_macs(model, torch.zeros(1, 3, *size), convention="tcformer")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params_m, rel=1e-4)
    assert macs.total / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert macs.clustering / 1e9 == pytest.approx(clustering, rel=0.01)


@pytest.mark.parametrize("name", ["tcformer_light", "tcformer_base", "tcformer_large"])
def test_key_counts(name):
    assert len(create_model(name).state_dict()) == {"light": 193, "base": 356, "large": 881}[name.split("_")[1]]


def test_names():
    names = list_models("tcformer*")
    assert {"tcformer_base_wholebody", "tcformer_light_wflw", "tcformer_base_hmr"} <= set(names)
    assert model_entry("tcformer_large_wholebody").input_shape == (3, 384, 288)


def test_evaluation_is_deterministic_with_black_borders():
    """Identical border tokens tie in density; without noise the same image gives the same bits."""
    torch.manual_seed(1)
    model = tiny()
    image = torch.zeros(2, 3, 96, 96)
    image[:, :, 24:72, 24:72] = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        a, b = model(image), model(image)
    assert torch.equal(a, b)
    with torch.no_grad():
        one = model(image[1:])
    torch.testing.assert_close(one, a[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (100, 76), (32, 32), (130, 66)])
def test_any_size_and_token_dictionary(size):
    model = tiny()
    with torch.no_grad():
        stages = model.forward_features(torch.rand(2, 3, *size))
    cells = -(-size[0] // 4) * -(-size[1] // 4)
    n, previous = cells, None
    for i, t in enumerate(stages):
        assert t.num_tokens == n and t.idx_token.shape == (2, cells)
        owners = torch.stack([row.bincount(minlength=n) for row in t.idx_token])
        assert (owners > 0).all(), "a token without cells"
        shares = torch.zeros(2, n).scatter_add(1, t.idx_token, t.agg_weight)
        torch.testing.assert_close(shares, torch.ones_like(shares), atol=2e-3, rtol=0)
        if previous is not None:  # tokens only ever merge
            whole = torch.zeros(2, previous.num_tokens, dtype=torch.int64).scatter(1, previous.idx_token, t.idx_token)
            assert torch.equal(whole.gather(1, previous.idx_token), t.idx_token)
        previous, n = t, max(-(-n // 4), 1)
        assert t.map_size == tuple(-(-(-(-s // 4)) // 2**i) for s in size)


def test_features_do_not_depend_on_the_order_of_clusters():
    """Later stages are permutation equivariant: numbering the clusters differently changes nothing but the order."""
    torch.manual_seed(0)
    model = tiny()
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        want = model(image)
        tokens, keys = model.ctm1(model.patch_embed1(image))
        perm = torch.randperm(tokens.num_tokens)
        inverse = torch.argsort(perm)
        shuffled = tokens._replace(x=tokens.x[:, perm], idx_token=inverse[tokens.idx_token], csr=None)
        a = model.block2[0](tokens, keys).x
        b = model.block2[0](shuffled, keys).x
    torch.testing.assert_close(b, a[:, perm], atol=2e-5, rtol=1e-5)
    assert want.shape == (1, 1000)


# ---- part-wise clustering


def test_part_order_covers_every_cell_once():
    order, position = part_order((14, 10), ((1, 1), (2, 2), (4, 4)))
    assert order.shape == (16 * 12,)
    assert torch.equal(order[position], torch.arange(140))
    assert (order >= 0).sum() == 140
    # each run of 12 places is one part of 4 x 3 cells, and four neighbouring runs are one coarse part
    for run in order.view(16, 12):
        cells = run[run >= 0]
        assert (cells // 10).max() - (cells // 10).min() < 4 and (cells % 10).max() - (cells % 10).min() < 3
    for run in order.view(4, 48):
        cells = run[run >= 0]
        assert (cells // 10).max() - (cells // 10).min() < 8 and (cells % 10).max() - (cells % 10).min() < 6


@pytest.mark.parametrize("size", [(128, 128), (120, 88)])
def test_part_clusters_stay_inside_their_part(size):
    model = tiny(parts=(4, 4, 2, 2, 1, 1))
    with torch.no_grad():
        stages = model.forward_features(torch.rand(1, 3, *size))
    h, w = stages[0].map_size
    rows, cols = torch.arange(h), torch.arange(w)
    for tokens, n in ((stages[1], 4), (stages[2], 2)):
        pad_h, pad_w = -h % n, -w % n
        if n == 2:  # the coarse parts are unions of the fine ones, also where the map was padded for those
            pad_h, pad_w = -h % 4, -w % 4
        part_row = (rows + pad_h // 2) * n // (h + pad_h)
        part_col = (cols + pad_w // 2) * n // (w + pad_w)
        part = (part_row[:, None] * n + part_col).flatten()
        token_part = torch.zeros(tokens.num_tokens, dtype=torch.int64).scatter(0, tokens.idx_token[0], part)
        assert torch.equal(token_part[tokens.idx_token[0]], part)
        per_part = tokens.num_tokens // (n * n)
        runs = tokens.idx_token[0] // per_part
        assert all((runs[part == p] == runs[part == p][0]).all() for p in part.unique())
    assert torch.isfinite(stages[3].x).all()


def test_one_part_is_the_global_clustering():
    torch.manual_seed(0)
    a, b = tiny(), tiny(parts=(1, 1, 1, 1, 1, 1))
    b.load_state_dict(a.state_dict())
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(a(image), b(image))


def test_parts_errors():
    with pytest.raises(ValueError, match="parts needs 6 numbers"):
        tiny(parts=(2, 2))
    with pytest.raises(ValueError, match="too small for 16x16 parts"):
        tiny(parts=(16, 16, 1, 1, 1, 1))(torch.rand(1, 3, 72, 72))
    with pytest.raises(ValueError, match="must divide into those of the next one"):
        tiny(parts=(1, 1, 2, 2, 1, 1))
    with pytest.raises(ValueError, match="parts must be positive"):
        tiny(parts=(0, 0, 1, 1, 1, 1))
    merged, _ = CTM(4, 4).eval()(grid_tokens(torch.rand(1, 64, 4), (8, 8)))
    with pytest.raises(ValueError, match="runs, got 1"):
        CTM(4, 4, part_levels=((2, 2),))(merged)


def test_part_wise_clustering_of_a_megapixel():
    """65,536 tokens of a 1024x1024 image (test_tcformer_precision.py measures the memory of the whole forward)."""
    ctm = CTM(4, 8, part_levels=((8, 8), (16, 16))).eval()
    tokens = grid_tokens(torch.rand(1, 65536, 4), (256, 256))
    with torch.no_grad():
        merged, _ = ctm(tokens)
    assert merged.num_tokens == 16384 and merged.parts == 256
    assert merged.idx_token.unique().numel() == 16384


# ---- ablations, other heads


@pytest.mark.parametrize("changes", [{"reduction": "conv"}, {"reduction": "topk"}])
def test_ablations_run_and_train(changes):
    torch.manual_seed(0)
    model = tiny(num_classes=3, **changes).train()
    out = model(torch.rand(2, 3, 64, 64))
    out.square().sum().backward()
    missing = [k for k, p in model.named_parameters() if p.grad is None]
    assert not missing, missing


def test_topk_assigns_to_the_nearest_of_the_best_scored():
    g = torch.Generator().manual_seed(0)
    x, score = torch.rand(2, 30, 5, generator=g), torch.rand(2, 30, generator=g)
    got = topk_clusters(x, score, 6)
    centers = score.topk(6).indices.sort(1).values
    want = torch.cdist(x, x.gather(1, centers[..., None].expand(-1, -1, 5))).argmin(2)
    assert torch.equal(got, want)


def test_every_parameter_of_the_paper_model_gets_a_gradient():
    torch.manual_seed(0)
    model = create_model("tcformer_light_wflw", **TINY, neck_channels=32, num_keypoints=5).train()
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    without = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without, without


def test_deconv_head_and_hmr():
    pose = tiny("tcformer_light_wholebody", neck="none")
    hmr = tiny("tcformer_light_hmr")
    with torch.no_grad():
        assert pose(torch.rand(1, 3, 64, 96)).shape == (1, 133, 16, 24)
        out = hmr(torch.rand(2, 3, 64, 64))
    identity = out.rotations @ out.rotations.transpose(2, 3)
    torch.testing.assert_close(identity, torch.eye(3).expand_as(identity), atol=1e-5, rtol=0)
    assert out.shape.shape == (2, 10) and out.camera.shape == (2, 3)
    torch.testing.assert_close(torch.linalg.det(out.rotations), torch.ones(2, 24), atol=1e-5, rtol=0)


def test_six_numbers_of_a_rotation_are_its_first_two_columns():
    q, _ = torch.linalg.qr(torch.randn(5, 3, 3))
    q = q * torch.linalg.det(q)[:, None, None]
    torch.testing.assert_close(
        rot6d_to_matrix(q[:, :, :2].reshape(5, 6), layout="interleaved"), q, atol=1e-5, rtol=1e-5
    )


def test_ppt_schedule():
    assert keep_ratio_at(5) == 1.0 and keep_ratio_at(200) == pytest.approx(0.7)
    assert keep_ratio_at(60) == pytest.approx(0.85)
    assert keep_ratio_at(60, shape="linear") == pytest.approx(0.85)


# ---- official files, our folders


def test_official_layouts_load_strictly():
    model = tiny(num_classes=7)
    state = model.state_dict()
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    for file in ({"model": state}, state, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        native = convert_tcformer(file)
        config = tcformer_config(fields, native)
        assert config.num_classes == 7
        type(model)(config).load_state_dict(native, strict=True)
    pose = tiny("tcformer_light_wholebody", neck_channels=32)
    mmpose = {k.replace("patch_embed1.proj.", "patch_embed1.projection."): v for k, v in pose.state_dict().items()}
    assert is_mmpose({"state_dict": mmpose}) and not is_mmpose(pose.state_dict())
    native = convert_tcformer({"state_dict": mmpose})
    type(pose)(tcformer_config({**fields, "neck": {"out_channels": 32}}, native)).load_state_dict(native, strict=True)
    with pytest.raises(ValueError, match="expected a state dict"):
        convert_tcformer({"epoch": 3, "model_ema": state})


@pytest.mark.parametrize("kind", ["classification", "pose", "mmpose"])
def test_official_file_tells_its_own_config(tmp_path, kind):
    dims = dict(
        embed_dims=(64, 128),
        num_heads=(1, 2),
        mlp_ratios=(2, 3),
        depths=(1, 2),
        sr_ratios=(8, 4),
        sample_ratios=(0.25,),
    )
    if kind == "classification":
        model = create_model("tcformer_light", num_classes=5, **dims).eval()
        file = {"model": model.state_dict(), "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    else:
        neck = dict(neck_channels=64, neck_heads=(1, 1), neck_mlp_ratios=(2, 2), neck_sr_ratios=(8, 4))
        eps = 1e-6 if kind == "mmpose" else 1e-5
        model = create_model("tcformer_light_wflw", num_keypoints=6, stem_norm_eps=eps, **neck, **dims).eval()
        rename = {"patch_embed1.proj.": "patch_embed1.projection."} if kind == "mmpose" else {}
        state = {
            functools.reduce(lambda k, r: k.replace(*r), rename.items(), k): v for k, v in model.state_dict().items()
        }
        file = {"state_dict": state, "meta": {"epoch": 210}}
    torch.save(file, tmp_path / "official.pth")
    again = load(tmp_path / "official.pth", "tcformer")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    (wrapper, state), *_ = ((k, v) for k, v in file.items() if k in ("model", "state_dict"))
    gone = "block1.0.mlp.fc1.weight" if kind == "classification" else "neck.lateral_convs.0.conv.weight"
    narrow = {**state, "backbone.norm1.bias" if kind != "classification" else "norm1.bias": torch.zeros(5)}
    for bad, words in (
        ({k: v for k, v in state.items() if k != gone}, gone),
        (narrow, r"1 keys of another shape, first: .*norm1.bias \[5\] \(expected \[64\]\)"),
    ):
        torch.save({wrapper: bad}, tmp_path / "damaged.pth")
        with pytest.raises(ValueError, match=f"damaged.pth: .*{words}"):
            load(tmp_path / "damaged.pth", "tcformer")
    torch.save({"model": {"conv.weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a TCFormer state dict"):
        load(tmp_path / "other.pth", "tcformer")


def test_folder_round_trip(tmp_path):
    model = tiny("tcformer_light_wflw", num_keypoints=4, neck_channels=32)
    save(model, tmp_path, "tcformer_light_wflw")
    again = load(tmp_path)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), again(image)) and again.config == model.config
    with pytest.raises(ValueError, match="does not fit tcformer_light_wflw: .* of another shape"):
        load(tmp_path, num_keypoints=5)


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match=r"image must be \[B, 3, H, W\], got \[3, 64, 64\]"):
        tiny()(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match="too small"):
        tiny()(torch.rand(1, 3, 24, 64))
    with pytest.raises(ValueError, match="reduction must be one of"):
        tiny(reduction="pool")
    for bad, words in (
        ({"num_heads": (1, 2)}, "num_heads must have 4 entries"),
        ({"depths": 1}, "depths must be .*int, .*got 1"),
        ({"sample_ratios": (2, 2, 2)}, r"sample_ratios must lie in \(0, 1\]"),
        ({"k": 0}, "k must be at least 1"),
        ({"drop_path_rate": "high"}, "drop_path_rate must be float, got 'high'"),
    ):
        with pytest.raises(ValueError, match=words):
            create_model("tcformer_light", **bad)


def test_token_conv_on_the_grid_is_a_convolution():
    conv = TokenConv(6, 6, 3, padding=1, groups=6)
    x = torch.rand(2, 35, 6)
    image = x.transpose(1, 2).reshape(2, 6, 5, 7)
    want = torch.nn.functional.conv2d(image, conv.weight, conv.bias, padding=1, groups=6)
    want = want + image * conv.skip.weight[:, :, 0, None][:, 0, :, None]
    torch.testing.assert_close(conv(grid_tokens(x, (5, 7))), want.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


# ---- capture


def test_compile_without_breaks():
    torch._dynamo.reset()
    torch.manual_seed(0)
    neck = dict(neck_channels=32, neck_heads=(2, 2), neck_mlp_ratios=(2, 2), neck_sr_ratios=(8, 4))
    model = create_model("tcformer_light_wflw", num_keypoints=4, **TWO_STAGES, **neck).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = model(image)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(image)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_one_compilation_serves_every_image_size_of_a_bucket():
    """(torch's own CPU convolution guards on the map's number of elements, so a bucket ends there on a CPU.)"""
    torch._dynamo.reset()
    count = 0

    def counting(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    model = create_model("tcformer_light", num_classes=4, **TWO_STAGES).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    with torch.no_grad():
        for size in ((160, 96), (128, 96), (96, 160)):
            image = torch.rand(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image), atol=1e-5, rtol=1e-5)
    assert count == 1, f"{count} compilations"


def test_export():
    model = tiny(num_classes=4)
    program = torch.export.export(model, (torch.rand(1, 3, 64, 96),))
    other = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), model(other), atol=1e-5, rtol=1e-5)
