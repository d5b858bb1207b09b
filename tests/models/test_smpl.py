"""HMR2 / CameraHMR hosts: sizes against the papers, token merging, folding, compile and export."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tore_fast.layers.decoder_head import CrossAttentionDecoder, DecoderConfig
from tore_fast.layers.eclm import ECLMPlan
from tore_fast.layers.mask_tome import MergeConfig, TokenState, mask_coverage, merge_tokens
from tore_fast.layers.prepared import prepare, unprepare
from tore_fast.layers.proportional import proportional_attention
from tore_fast.models import create_model, load, model_entry, save
from tore_fast.models.backbones.vit import ViT, ViTConfig
from tore_fast.models.smpl.hmr2 import SMPLHead
from tore_fast.pipelines.merge import apply_plan

TINY = dict(
    embed_dim=48,
    depth=3,
    num_heads=3,
    decoder_depth=2,
    decoder_heads=2,
    decoder_dim_head=16,
    decoder_mlp_dim=32,
    decoder_dim=64,
)
PAPER = ["hmr2_vith", "camerahmr_vith", "fasthmr_hmr2", "fasthmr_camerahmr", "fasthmr_motion_d5"]


def tiny(name: str = "hmr2_vits", **fields):
    extra = {"fov_net": False} if name.startswith("camera") else {}
    return create_model(name, **{**TINY, **extra, **fields}).eval()


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Zero and constant initial values would hide mistakes."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2)
    return module


@pytest.mark.parametrize("name", PAPER)
def test_size_within_one_percent_of_the_paper(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.zeros(1, *entry.input_shape))
    params = sum(p.numel() for p in model.parameters()) / 1e6
    counts = counter.get_flop_counts()["Global"]  # the paper counts linear and conv layers, no attention products
    gmacs = sum(v for k, v in counts.items() if any(t in str(k) for t in ("addmm", ".mm", "convolution"))) / 2e9
    assert params == pytest.approx(entry.paper.params_m, rel=0.01)
    assert gmacs == pytest.approx(entry.paper.gmacs, rel=0.01)


@pytest.mark.parametrize(("per_block", "kept"), [(10, 11), (20, 6), (40, 3), (60, 2), (80, 2), (100, 2)])
def test_schedule_reaches_the_budget_in_the_blocks_of_the_spec(per_block, kept):
    schedule = MergeConfig.paper(keep=90, per_block=per_block).schedule(192, 28)
    assert sum(schedule) == 102 and sum(r > 0 for r in schedule) == kept


def test_schedule_warns_when_depth_is_too_small():
    with pytest.warns(UserWarning, match="more than keep=90"):
        MergeConfig(keep=90, per_block=10).schedule(192, 3)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(4, 20), order=st.sampled_from(["position", "index", "tome"]))
def test_merging_exact_duplicates_is_lossless(seed, pairs, order):
    """With proportional attention (blocks and decoder) the pose does not change when every token occurs twice."""
    torch.manual_seed(seed)
    merging = MergeConfig(r=(pairs,), order=order, prop_attn=True)
    vit = randomise(ViT(ViTConfig(embed_dim=32, depth=3, num_heads=2))).eval()
    head = randomise(SMPLHead(DecoderConfig(depth=2, heads=2, dim_head=8, mlp_dim=16, dim=24, context_dim=32))).eval()
    x = torch.randn(2, pairs, 32).repeat_interleave(2, 1)

    def run(config):
        state, y = TokenState(), x
        for i, block in enumerate(vit.blocks):
            y = block(y, state, pairs if config is not None and i == 0 else 0, config)
        return y, state

    with torch.no_grad():
        full, _ = run(None)
        merged, state = run(merging)
        assert merged.shape[1] == pairs and torch.all(state.size == 2)
        torch.testing.assert_close(merged, full[:, 1::2], atol=2e-5, rtol=2e-5)
        want = head(full)
        got = head(merged, state.size.log())
        torch.testing.assert_close(got.token, want.token, atol=2e-5, rtol=2e-5)
        # equal sizes cannot show a missing log size: add one token that occurs once
        one = torch.randn(2, 1, 32)
        want = head(torch.cat((full, one), 1)).token
        size = torch.cat((state.size, torch.ones(2, 1)), 1)
        torch.testing.assert_close(head(torch.cat((merged, one), 1), size.log()).token, want, atol=2e-5, rtol=2e-5)
        assert not torch.allclose(head(torch.cat((merged, one), 1)).token, want, atol=1e-3)


@pytest.mark.parametrize("method", ["bias", "widen", "kernel"])
@pytest.mark.parametrize("dim", [80, 64, 20])
def test_proportional_attention_methods_agree(method, dim):
    q, k, v = torch.randn(2, 3, 5, dim), torch.randn(2, 3, 7, dim), torch.randn(2, 3, 7, dim)
    size = torch.randint(1, 6, (2, 7)).float()
    weights = (q.double() @ k.double().mT * dim**-0.5).exp() * size[:, None, None].double()
    want = (weights / weights.sum(-1, keepdim=True)) @ v.double()
    got = proportional_attention(q, k, v, size.log(), method=method)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=1e-5)


def test_mask_coverage_is_the_mean_over_the_conv_window():
    mask = (torch.rand(2, 256, 192) > 0.6).float()
    got = mask_coverage(mask).reshape(2, 16, 12)
    for i, j in ((0, 0), (0, 11), (7, 3), (15, 11)):
        rows = slice(max(0, 16 * i - 2), 16 * i + 14)
        columns = slice(max(0, 16 * j - 2), 16 * j + 14)
        torch.testing.assert_close(got[:, i, j], mask[:, rows, columns].sum((1, 2)) / 256)


def test_the_conv_sees_the_window_that_coverage_assumes():
    vit = randomise(ViT(ViTConfig(embed_dim=8, depth=1, num_heads=1)))
    base = torch.zeros(1, 3, 256, 192)
    for i, j in ((3, 5), (15, 11)):
        spot = base.clone()
        spot[:, :, 16 * i + 13, 16 * j + 13] = 1
        changed = (vit.patch_embed(spot) - vit.patch_embed(base)).abs().sum(-1)[0].nonzero().flatten().tolist()
        assert changed == [12 * i + j]


def test_convolutional_stem_prepares_and_merges():
    """The stem of `hmr2_vitt`: its grid, masks that line up, and the folded and layer-merged forms."""
    model = randomise(create_model("hmr2_vitt", depth=3, embed_dim=32, decoder_depth=1))
    stem, cfg = model.backbone.patch_embed, model.backbone.cfg
    img = torch.randn(4, 3, 128, 128)
    model.train()(img)  # moves the running statistics away from 0 and 1
    model.eval()
    assert cfg.grid == (8, 6) and stem(img[..., 16:-16]).shape == (4, 48, 32)
    torch.testing.assert_close(mask_coverage(torch.ones(1, 128, 96), 16, cfg.stride, cfg.padding), torch.ones(1, 48))
    for wrong in ({"img_size": (120, 96)}, {"ratio": 2}, {"patch_size": 12, "img_size": (96, 96)}):
        with pytest.raises(ValueError, match="stem 'conv' needs ratio 1"):
            ViT(ViTConfig(embed_dim=32, num_heads=2, stem="conv", **{"img_size": (128, 96), **wrong}))
    with pytest.raises(ValueError, match="stem must be one of patch, conv, got 'dense'"):
        ViT(ViTConfig(stem="dense"))
    with torch.no_grad():
        merged = apply_plan(model, ECLMPlan(((0,), (1, 2))))
        assert len(merged.backbone.blocks) == 2
        torch.testing.assert_close(merged.backbone.patch_embed(img[..., 16:-16]), stem(img[..., 16:-16]))
        for host, mask in ((model, None), (merged, torch.zeros(4, 128, 128).index_fill(2, torch.arange(60), 1))):
            host.set_merging(MergeConfig.paper(keep=20, per_block=20))
            want = host(img, mask)
            assert host.encode(img, mask)[0].shape == (4, 20, 32)
            got = host.prepare()(img, mask)
            torch.testing.assert_close(got.pose, want.pose, atol=1e-4, rtol=1e-4)
            host.backbone.patch_embed.proj[1].running_mean.add_(1)  # noticed
            changed = host(img, mask).pose
            assert not torch.allclose(changed, got.pose)
            torch.testing.assert_close(changed, host.unprepare()(img, mask).pose, atol=1e-4, rtol=1e-4)


def test_background_merges_first_and_the_least_covered_person_tokens_next():
    torch.manual_seed(1)
    x, metric = torch.randn(1, 40, 8), torch.randn(1, 40, 6)
    coverage = torch.zeros(1, 40)
    coverage[0, 10:30] = 0.5
    cfg = MergeConfig(r=(10,), track_source=True)
    state = TokenState(coverage)
    merge_tokens(x, metric, 10, state, cfg)
    groups = [set(row.nonzero().flatten().tolist()) for row in state.source[0] if row.sum() > 1]
    assert groups and all(not g & set(range(10, 30)) for g in groups)  # 20 background tokens give the 10 merges
    assert int((state.coverage > 0.1).sum()) == 20

    coverage = torch.full((1, 40), 0.9)
    coverage[0, :8] = 0.2  # everything is person; tokens 0..7 only just
    state = TokenState(coverage)
    merge_tokens(x, metric, 4, state, cfg)
    groups = [set(row.nonzero().flatten().tolist()) for row in state.source[0] if row.sum() > 1]
    assert set.union(*groups) <= set(range(8))
    assert torch.all(state.coverage > 0.1)


def test_host_with_masks_keeps_more_person_tokens_than_without():
    model = randomise(tiny(merge_r=(40, 40, 22)))
    img, mask = torch.randn(2, 3, 256, 256), torch.zeros(2, 256, 256)
    mask[:, 64:192, 96:160] = 1
    coverage = model.coverage(mask)
    person = coverage > 0.1
    with torch.no_grad():
        for given in (None, mask):
            vit, kept = model.backbone, []
            vit.merging = MergeConfig(r=(40, 40, 22), track_source=True)
            out = vit.forward_tokens(img[..., 32:-32], None if given is None else coverage)
            assert out.tokens.shape[1] == 90 and torch.all(out.size.sum(1) == 192)
            alone = (out.source.sum(-1, keepdim=True) == 1) * out.source
            kept.append((alone.sum(1) * person).sum() / person.sum())
            if given is not None:
                assert kept[0] == 1  # every person token is still itself
                plain_output, masked_output = model(img), model(img, mask)
                assert not torch.allclose(plain_output.token, masked_output.token)
            else:
                assert kept[0] < 1


@pytest.mark.parametrize("query", ["zero", "mean_shape", "bbox"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_prepared_heads_change_nothing(query, iterations):
    head = SMPLHead(
        DecoderConfig(depth=3, heads=2, dim_head=16, mlp_dim=32, dim=48, context_dim=40), query, ief_iters=iterations
    )
    randomise(head).eval()
    context, size, box = torch.randn(2, 17, 40), torch.rand(2, 17) * 2, torch.randn(2, 3)
    with torch.no_grad():
        want = head(context, size, box)
        decoder = prepare(head).transformer
        got = head(context, size, box)
        assert (decoder.recall("start") is not None) == (query == "zero")
        for a, b in zip(got[:6], want[:6]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        decoder.transformer.layers[0][0].fn.to_out[0].bias.add_(1)  # noticed
        changed = head(context, size, box)
        assert not torch.allclose(changed.token, got.token)
        torch.testing.assert_close(changed.token, unprepare(head)(context, size, box).token, atol=1e-5, rtol=1e-4)


def test_query_and_key_weights_of_a_single_token_are_dead():
    decoder = randomise(
        CrossAttentionDecoder(1, DecoderConfig(depth=2, heads=2, dim_head=8, mlp_dim=16, dim=24, context_dim=20))
    )
    token, context = torch.zeros(2, 1, 1), torch.randn(2, 9, 20)
    want = decoder(token, context)
    for layer in decoder.transformer.layers:
        weight = layer[0].fn.to_qkv.weight
        weight.data[:32] = torch.randn(32, 24) * 100  # q and k rows
    torch.testing.assert_close(decoder(token, context), want, atol=0, rtol=0)
    several = torch.randn(2, 3, 1)  # with several tokens they are alive
    before = decoder(several, context)
    decoder.transformer.layers[0][0].fn.to_qkv.weight.data[:16] *= -1
    assert not torch.allclose(decoder(several, context), before)


def test_a_prepared_model_and_its_checkpoint(tmp_path):
    model = randomise(tiny(keep_tokens=100, merge_per_block=40))
    img = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        want = model(img)
        save(model, tmp_path, "hmr2_vits")
        again = load(tmp_path)
        torch.testing.assert_close(again(img).pose, want.pose, atol=0, rtol=0)
        torch.testing.assert_close(again.prepare()(img).pose, want.pose, atol=1e-4, rtol=1e-4)


def test_camerahmr_needs_complete_boxes_and_uses_them():
    model = randomise(tiny("camerahmr_vits"))
    img = torch.randn(2, 3, 256, 256)
    where = dict(
        box_center=torch.tensor([[300.0, 200], [100, 90]]),
        box_size=torch.tensor([220.0, 90]),
        image_size=torch.tensor([[640.0, 480]] * 2),
    )
    with torch.no_grad():
        near = model(img, **where, focal=torch.full((2,), 500.0))
        far = model(img, **where, focal=torch.full((2,), 1500.0))
    assert near.keypoints.shape == (2, 44, 2) and not torch.allclose(near.token, far.token)
    with pytest.raises(ValueError, match="together"):
        model(img, box_size=where["box_size"], focal=torch.ones(2))
    with pytest.raises(ValueError, match="fov_net"):
        model(img)


@pytest.mark.parametrize(
    "field",
    [
        {"merge_order": "tome"},
        {"merge_rounds": "paper"},
        {"merge_src": "odd"},
        {"merge_avg": "mean"},
        {"prop_attn": False},
    ],
)
def test_merge_options_train(field):
    model = tiny(keep_tokens=90, **field).train()
    out = model(torch.randn(2, 3, 256, 256), torch.rand(2, 256, 256) > 0.5)
    (out.pose.square().mean() + out.cam.square().mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_errors_name_what_is_wrong():
    model = tiny(keep_tokens=90)
    with pytest.raises(ValueError, match="crop width"):
        model(torch.zeros(1, 3, 256, 190))
    with pytest.raises(ValueError, match=r"img must be \[B, 3, 256, 192\]"):
        model(torch.zeros(1, 3, 128, 256))
    with pytest.raises(ValueError, match="coverage must be"):
        model.backbone.forward_tokens(torch.zeros(1, 3, 256, 192), torch.zeros(1, 10))
    with pytest.raises(ValueError, match="order must be"):
        MergeConfig(order="random")
    with pytest.raises(ValueError, match="no feature map"):
        model.backbone(torch.zeros(1, 3, 256, 192))


def test_merged_host_compiles_without_breaks():
    model = randomise(tiny(depth=2, merge_r=(40, 20))).requires_grad_(False).prepare()
    img, mask = torch.randn(2, 3, 256, 256), (torch.rand(2, 256, 256) > 0.5).float()
    with torch.no_grad():
        want = model(img, mask)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(img, mask)
    torch.testing.assert_close(got.pose, want.pose, atol=1e-5, rtol=1e-4)


def test_merged_host_exports():
    model = randomise(tiny(depth=2, merge_r=(40, 20))).requires_grad_(False).prepare()
    img = torch.randn(1, 3, 256, 256)
    program = torch.export.export(model, (img,))
    torch.testing.assert_close(program.module()(img).pose, model(img).pose, atol=1e-5, rtol=1e-4)
