"""accelerate(): the same call on every family; off and removed it changes no bit; on, it keeps its promises."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from made_up import foreign_vit as foreign
from torch import nn

import tore_fast
from tore_fast.accelerate import Refused, accelerate, search_layers
from tore_fast.accelerate.hosts import find_host
from tore_fast.accelerate.macs import stack_macs
from tore_fast.accelerate.runtime import accelerated
from tore_fast.accelerate.stack import merged_state
from tore_fast.layers.eclm import ECLMPlan
from tore_fast.layers.mask_tome import MergeConfig
from tore_fast.models import create_model


def dinov3():
    return foreign.randomise(foreign.RotaryViT()), torch.randn(2, 3, 128, 128)


def vitpose():
    return foreign.randomise(foreign.PoseViT()), torch.randn(2, 3, 128, 96)


def timm_vit():
    import timm

    size = dict(img_size=128, embed_dim=32, depth=6, num_heads=2, num_classes=5, global_pool="avg")
    return foreign.randomise(timm.create_model("vit_tiny_patch16_224", **size)), torch.randn(2, 3, 128, 128)


def timm_registers():
    import timm

    size = dict(img_size=112, embed_dim=32, depth=6, num_heads=2)
    return foreign.randomise(timm.create_model("vit_small_patch14_reg4_dinov2", **size)), torch.randn(2, 3, 112, 112)


def timm_dinov3():
    import timm

    size = dict(img_size=128, embed_dim=32, depth=6, num_heads=2)
    return foreign.randomise(timm.create_model("vit_small_patch16_dinov3", **size)), torch.randn(2, 3, 128, 128)


def timm_eva02():
    import timm

    size = dict(img_size=112, embed_dim=32, depth=6, num_heads=2)
    return foreign.randomise(timm.create_model("eva02_tiny_patch14_224", **size)), torch.randn(2, 3, 112, 112)


class Last(nn.Module):
    """transformers' model, for its tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).last_hidden_state


def hf_dinov2():
    hf = pytest.importorskip("transformers", reason="the Dinov2 of transformers is tested where it is installed")
    sizes = dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=112, patch_size=14)
    return Last(foreign.randomise(hf.Dinov2Model(hf.Dinov2Config(**sizes)))).eval(), torch.randn(2, 3, 112, 112)


def hf_dinov3():
    hf = pytest.importorskip("transformers", reason="the DINOv3 of transformers is tested where it is installed")
    sizes = dict(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, num_register_tokens=4
    )
    model = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(image_size=128, patch_size=16, use_gated_mlp=True, **sizes))
    return Last(foreign.randomise(model)).eval(), torch.randn(2, 3, 128, 128)


HOSTS = {
    f.__name__: f for f in (dinov3, vitpose, timm_vit, timm_registers, timm_dinov3, timm_eva02, hf_dinov2, hf_dinov3)
}
PATCHES = {"vitpose": 48}


@pytest.fixture(params=HOSTS)
def host(request):
    torch.manual_seed(0)
    model, img = HOSTS[request.param]()
    return model, img, PATCHES.get(request.param, 64)


def test_every_family_merges_and_comes_back(host):
    model, img, patches = host
    keys = list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    with torch.no_grad():
        want = model(img)
        handle = tore_fast.accelerate(model)
        assert torch.equal(model(img), want)  # nothing merges: the original blocks
        handle.set(keep_tokens=patches)
        assert torch.equal(model(img), want)
        handle.set(keep_tokens=patches // 2)
        got = model(img)
        assert got.shape == want.shape and not torch.allclose(got, want, atol=1e-6)
        front = handle.size.shape[1] - patches // 2
        assert handle.size.sum(1).eq(patches + front).all() and handle.size[:, :front].eq(1).all()
        assert handle.owner.shape == (2, patches) and all(len(set(o.tolist())) == patches // 2 for o in handle.owner)
        assert torch.equal(model(img), got) and list(model.state_dict()) == keys
        # batch of two = two batches of one; permuted images give permuted outputs
        for i in (0, 1):
            torch.testing.assert_close(model(img[i : i + 1])[0], got[i], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model(img.flip(0)).flip(0), got, atol=2e-5, rtol=1e-4)
        report = handle.report(patches)
        assert report["tokens"][-1] == patches // 2 and report["fewer_macs"] > 1.2
        handle.remove()
        assert torch.equal(model(img), want) and [type(m) for m in model.modules()] == kinds
        handle.remove()
    with pytest.raises(ValueError, match="was removed"):
        handle.set(keep_tokens=3)


def test_own_attention_is_the_original_one(host):
    model, img, _ = host
    with torch.no_grad():
        want = model(img)
        with accelerate(model, attention="sdpa", exact_speedups=False):
            torch.testing.assert_close(model(img), want, atol=1e-5, rtol=1e-4)
        assert torch.equal(model(img), want)


def test_a_person_is_spared_and_masks_are_checked(host):
    model, img, patches = host
    width = img.shape[-1]
    mask = torch.zeros(2, *img.shape[-2:])
    mask[:, :, : width // 4] = 1
    with accelerate(model, keep_tokens=patches // 2 + 4) as handle, torch.no_grad():
        handle.set_mask(mask)
        person = handle.runtime.coverage > 0.1
        plain = None
        for i in range(2):
            model(img)
            sizes = handle.size[:, -(patches // 2 + 4) :].gather(1, handle.owner)
            alone = ((sizes == 1) & person).sum() / person.sum()
            if i == 0:
                assert alone == 1
                handle.set_mask(None)
            else:
                plain = alone
        assert plain < 1
        handle.set_mask(mask[:1])
        with pytest.raises(ValueError, match="the mask gives coverage"):
            model(img)


@pytest.mark.parametrize("name", ["dinov3", "vitpose", "timm_dinov3"])
@pytest.mark.parametrize("unmerge", ["copy", "residual"])
def test_equal_tokens_merge_without_loss(name, unmerge):
    """Every second token is a copy of its neighbour at its neighbour's position: the output is that of all tokens."""
    torch.manual_seed(1)
    model, _ = HOSTS[name]()
    blocks, family = model.blocks, find_host(model).family
    front = 0 if name == "vitpose" else 5
    x = torch.randn(2, 32, 32).repeat_interleave(2, 1)
    x = torch.cat((torch.randn(2, front, 32), x), 1)
    table = None
    if front:
        angle = torch.randn(32, 8).repeat_interleave(2, 0).tile(2)
        table = torch.cat((angle.sin(), angle.cos()), 1)

    def run():
        y = x
        for block in blocks:
            y = family.call(block, y, table)
        return y

    with torch.no_grad():
        want = run()
        for per_block in (32, 8):  # one round, and four with places kept
            with accelerate(model, keep_tokens=32, per_block=per_block, unmerge=unmerge) as handle:
                got = run()
                assert int(handle.size.max()) == 2
            assert float((got - want).norm() / want.norm()) < 2e-6
        with accelerate(model, keep_tokens=32, per_block=32, prop_attn=False):
            assert float((run() - want).norm() / want.norm()) < 1e-2  # all sizes are equal: only the front differs
        if front:
            assert not torch.equal(run()[:, :front], x[:, :front])


@pytest.mark.parametrize("name", ["dinov3", "vitpose", "timm_vit", "timm_dinov3"])
def test_copies_compile_and_low_precision(name):
    torch.manual_seed(0)
    model, img = HOSTS[name]()
    with torch.no_grad():
        whole = model(img)
        accelerate(model, keep_tokens=24)
        want = model(img)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(img), want)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(img), want)
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(img), want, atol=1e-4, rtol=1e-4)
        for dtype in (torch.bfloat16, torch.float16):
            low = copy.deepcopy(model).to(dtype)
            assert torch.isfinite(low(img.to(dtype))).all()
    assert whole.shape == want.shape


def test_autocast_and_residual_differ_and_come_back():
    torch.manual_seed(0)
    model, img = dinov3()
    with torch.no_grad():
        want = model(img)
        with accelerate(model, dtype=torch.bfloat16):
            low = model(img)
            assert low.dtype == torch.float32 and not torch.equal(low, want)
            torch.testing.assert_close(low, want, atol=0.1, rtol=0.1)
        assert torch.equal(model(img), want)
        found = {}
        for unmerge in ("copy", "residual"):
            with accelerate(model, keep_tokens=32, unmerge=unmerge):
                found[unmerge] = model(img)
        assert not torch.allclose(found["copy"], found["residual"], atol=1e-4)


def test_exact_speed_ups_leave_every_bit():
    torch.manual_seed(0)
    model, img = dinov3()
    with torch.no_grad():
        want = model(img)
        assert model.rope_embed.calls == 6
        for names, calls in ((True, 1), (("k_bias",), 6), (("rope_table",), 1), (False, 6)):
            model.rope_embed.calls = 0
            with accelerate(model, exact_speedups=names) as handle:
                assert torch.equal(model(img), want) and model.rope_embed.calls == calls
                assert set(handle.report()["exact"]) == set(("k_bias", "rope_table") if names is True else names or ())
        with accelerate(model):
            assert torch.equal(model(img), want)
            model.blocks[0].attn.qkv.bias.add_(1)  # noticed
            changed = model(img)
        assert torch.equal(model(img), changed) and not torch.equal(changed, want)
    with pytest.raises(ValueError, match="exact speed-ups are"):
        accelerate(model, exact_speedups=("magic",))


@pytest.mark.parametrize("pose", [False, True])
def test_sam3d_estimator_budgets_masks_and_comparison(pose):
    torch.manual_seed(0)
    estimator = foreign.Estimator(pose)
    foreign.randomise(estimator.model)
    images, boxes = [torch.randn(3, 128, 128) for _ in range(2)], [torch.zeros(2, 4)] * 2
    patches = 48 if pose else 64
    want = [p["pred_keypoints_3d"] for p in estimator.process_one_image(images[0], boxes[0])]
    handle = accelerate(estimator, keep_tokens=(patches // 2 + 4, None))
    model, seen = estimator.model, []
    original = handle._branch.coverage
    handle._branch.coverage = lambda batch, hand: seen.append((hand, original(batch, hand))) or seen[-1][1]
    estimator.process_one_image(images[0], boxes[0])
    assert [h for h, _ in seen] == [False]  # hands keep all their tokens
    coverage = seen[0][1]
    assert coverage.shape == (2, patches)
    # person 0 has a mask (a quarter of the height left out at either end), person 1 its box (0.4 x 0.8 of the crop)
    assert 0 < coverage[0].sum() < coverage[1].sum() and coverage[1].sum() == pytest.approx(0.4 * 0.8 * 64, rel=0.2)
    handle.set(keep_tokens=patches // 2)
    estimator.process_one_image(images[0], boxes[0])
    assert [h for h, _ in seen][1:] == [False, True]
    assert model.seen[-1][-2:] == ((8, 6) if pose else (8, 8))
    found = handle.compare(images, boxes, keep=(patches // 4,))
    assert found["unit"] == "mm" and len(found["rows"][0]["per_image"]) == 4
    assert 0 < found["rows"][0]["mean"] < found["rows"][1]["mean"] and found["rows"][1]["keep_tokens"] == patches // 4
    times = handle.benchmark(images, boxes, repeats=1)
    assert times["faster"] > 0 and times["accelerated"]["vit_ms"] < times["accelerated"]["ms"]
    model.body_batch_idx, model.hand_batch_idx = [0], [0]
    handle.set(keep_tokens=(20, 30))
    with pytest.raises(ValueError, match="need one budget"):
        model.forward_pose_branch({"img": torch.zeros(1, 2, 3, 128, 128)})
    with pytest.raises(ValueError, match="gives its own masks"):
        handle.set_mask(torch.zeros(1, 128, 128))
    handle.remove()
    assert "forward_pose_branch" not in vars(model)
    got = [p["pred_keypoints_3d"] for p in estimator.process_one_image(images[0], boxes[0])]
    assert all((a == b).all() for a, b in zip(got, want))
    with pytest.raises(ValueError, match="masks must be one of"):
        accelerate(estimator, keep_tokens=20, masks="sometimes")


def test_our_own_host_takes_the_same_call():
    torch.manual_seed(0)
    model = create_model("hmr2_vitt", depth=5, embed_dim=32, decoder_depth=1).eval()
    img = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        want = model(img).pose
        with accelerate(model, keep_tokens=0.5, layers=ECLMPlan(((0,), (1, 2), (3,), (4,)))) as handle:
            assert model.encode(img)[0].shape == (1, 24, 32) and len(model.backbone.blocks) == 4
            assert handle.report()["blocks"] == [5, 4] and handle.report()["tokens"][-1] == 24
            assert handle.compare(img)["rows"][0]["mean"] > 0
            with pytest.raises(ValueError, match="argument `mask`"):
                handle.set_mask(torch.zeros(1, 128, 128))
        assert torch.equal(model(img).pose, want)


def test_layers_merge_in_place_and_come_back(tmp_path):
    torch.manual_seed(0)
    model, img = dinov3()
    plan = ECLMPlan(((0,), (1, 2), (3, 4, 5)))
    with torch.no_grad():
        want, before = model(img), list(model.blocks)
        found = {}
        for how in ("fold", "separate"):
            with accelerate(model, layers=plan, layerscale=how):
                assert len(model.blocks) == 3 and model.blocks[0] is before[0]
                found[how] = model(img)
        assert not torch.allclose(found["fold"], found["separate"], atol=1e-5)
        assert list(model.blocks) == before and torch.equal(model(img), want)
        with accelerate(model, layers=ECLMPlan(((0,), (1, 2), (3,), (4,), (5,)))):
            pair = model(img)
        model.blocks = nn.ModuleList(before[:1] + before[2:])  # a pair drops its lower block
        assert torch.equal(model(img), pair)
        model.blocks = nn.ModuleList(before)
        # what the fold means: the product of scale and weight follows the formula
        states = [b.state_dict() for b in before[3:]]
        merged = merged_state(states, find_host(model).family)
        product = [s["ls1.gamma"][:, None] * s["attn.proj.weight"] for s in states]
        got = merged["ls1.gamma"][:, None] * merged["attn.proj.weight"]
        torch.testing.assert_close(got, product[1] + product[2] - product[0], atol=1e-6, rtol=1e-5)
        states[0]["attn.qkv.bias_mask"] = torch.full((96,), float("nan"))
        with pytest.raises(ValueError, match="attn.qkv.bias_mask holds NaN"):
            merged_state(states, find_host(model).family)
        with pytest.raises(ValueError, match="for 2 blocks, the model has 6"):
            accelerate(model, layers=ECLMPlan(((0,), (1,))))
        assert torch.equal(model(img), want)
        result = search_layers(
            find_host(model),
            model,
            [img],
            lambda a, b: (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1),
            tau=0.5,
        )
        assert result.plan.num_original == 6 and len(result.trace) == 5 and torch.equal(model(img), want)


def test_plans_are_bound_to_the_model(tmp_path):
    torch.manual_seed(0)
    model, img = dinov3()
    with torch.no_grad():
        with accelerate(model, keep_tokens=40, layers=ECLMPlan(((0, 1), (2,), (3,), (4,), (5,)))) as handle:
            want = model(img)
            handle.compare(img)
            handle.save(tmp_path / "plan.json")
        with accelerate(model, plan=tmp_path / "plan.json") as handle:
            assert torch.equal(model(img), want) and handle.plan.measured["compare"]["unit"] == "relative"
    other, _ = vitpose()
    with pytest.raises(ValueError, match=r"made for \{.*'dinov3'.*\}, this model is \{.*'vitpose'"):
        accelerate(other, plan=tmp_path / "plan.json")
    for text in ("[]", "{}", '{"tore_fast": "1", "fingerprint": {}, "keep_tokens": "many"}', "nothing"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="bad.json: not a plan"):
            accelerate(other, plan=tmp_path / "bad.json")
    with pytest.raises(ValueError, match="give it alone"):
        accelerate(other, keep_tokens=3, plan=tmp_path / "plan.json")


def windowed():
    model, _ = vitpose()
    model.blocks[2].window_size = 4
    return model


def checkpointing():
    model, _ = timm_vit()
    model.set_grad_checkpointing()
    return model


def training():
    model, _ = vitpose()
    model.train()
    return model


def twice():
    model, _ = vitpose()
    accelerate(model)
    return model


def compiled():
    return torch.compile(vitpose()[0])


def tensorrt():
    body = foreign.randomise(foreign.Body())
    body.backbone._use_tensorrt = True
    return body


def other_scale():
    model, _ = vitpose()
    model.blocks[3].attn.forward = lambda x: model.blocks[3].attn.proj(x)
    return model


def post_norm():
    import timm

    return timm.create_model("eva02_tiny_patch14_224", depth=1, use_post_norm=True).eval()


def mixed_rope():
    import timm

    return timm.create_model("vit_small_patch16_rope_mixed_224", depth=1).eval()


def grouped():
    model, _ = timm_dinov3()
    model.blocks[0].attn.num_kv_groups = 2
    return model


def relative():
    import timm

    return timm.create_model("vit_relpos_small_patch16_224", depth=1).eval()


def several_maps():
    hf = pytest.importorskip("transformers", reason="the backbone of transformers is tested where it is installed")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    return hf.Dinov2Backbone(hf.Dinov2Config(out_features=["stage1", "stage2"], **sizes)).eval()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Linear(2, 2), "no ViT in Linear"),
        (windowed, "windowed attention"),
        (checkpointing, "gradient checkpointing runs blocks twice"),
        (training, "in training mode; call eval"),
        (twice, "accelerated already"),
        (compiled, "compiled or runs in TensorRT"),
        (tensorrt, "compiled or runs in TensorRT"),
        (other_scale, "block 3 .* computes something that the adapter 'vitpose' does not know"),
        (post_norm, "of no known family|computes something"),
        (mixed_rope, "mixed RoPE"),
        (grouped, "its attention groups queries"),
        (relative, "relative positions|looks like timm, but its forward takes shared_rel_pos|no known family"),
        (several_maps, "only the last block's map can be had"),
    ],
)
def test_refusals_say_why(make, said):
    model = make()
    with pytest.raises(Refused, match=said):
        accelerate(model, keep_tokens=8)


def test_refusals_while_running():
    model, img = dinov3()
    accelerate(model, keep_tokens=20)
    x = torch.randn(1, 69, 32)
    with pytest.raises(Refused, match="lists of inputs"):
        model.blocks[0]([x, x], [None, None])
    model.train()
    with pytest.raises(Refused, match="in training mode"):
        model(img)
    vit, img = timm_vit()
    accelerate(vit, keep_tokens=20)
    with pytest.raises(Refused, match="attention masks"):
        vit.blocks[0](torch.randn(1, 65, 32), attn_mask=torch.ones(65, 65))
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match="graph=True needs the model on a CUDA device"):
            accelerate(vitpose()[0], graph=True)
    for keep, said in ((0, "positive number"), (True, "positive number"), ((3, 4), "is for SAM 3D Body")):
        with pytest.raises(ValueError, match=said):
            accelerate(vitpose()[0], keep_tokens=keep)
    for option in ({"unmerge": "sum"}, {"attention": "flash"}, {"layerscale": "x", "layers": ECLMPlan.identity(6)}):
        with pytest.raises(ValueError, match="must be"):
            accelerate(vitpose()[0], **option)


@pytest.mark.parametrize("name", ["timm_registers", "timm_dinov3"])
def test_only_the_last_map_while_tokens_merge(name):
    torch.manual_seed(0)
    vit, img = HOSTS[name]()
    calls = [(vit.forward_intermediates, "indices")]
    if hasattr(vit, "get_intermediate_layers"):
        calls.append((vit.get_intermediate_layers, "n"))
    seen = []
    vit.blocks[3].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad(), accelerate(vit) as handle:
        assert all(len(getattr(vit, call.__name__)(img, **{key: 2})) == 2 for call, key in calls)  # nothing merges
        handle.set(keep_tokens=32)
        for call, key in calls:
            for many in (2, [4, 5], *((None,) if key == "indices" else ())):
                with pytest.raises(Refused, match=f"only the last block's map can be had .* ask for {key}=1"):
                    getattr(vit, call.__name__)(img, **{key: many})
            getattr(vit, call.__name__)(img, **{key: 1}), getattr(vit, call.__name__)(img, **{key: [5]})
        vit.forward_features(img)
        assert seen[-1] < seen[0]  # hooks of the user see the merged tokens
    assert not {"forward_intermediates", "get_intermediate_layers"} & set(vars(vit))


def test_an_instance_keeps_what_it_had_of_its_own():
    model, img = dinov3()
    own = model.forward
    model.forward = own  # an attribute of the instance over the class's method
    with accelerate(model, dtype=torch.bfloat16):
        assert vars(model)["forward"] is not own and torch.isfinite(copy.deepcopy(model)(img)).all()
    assert vars(model)["forward"] is own


def test_the_probe_can_be_left_out_and_one_class_is_made_per_block_class():
    model, _ = vitpose()
    assert accelerated(foreign.PoseBlock) is accelerated(foreign.PoseBlock)
    handle = accelerate(model, keep_tokens=0.5, probe=False)
    assert isinstance(model.blocks[0], foreign.PoseBlock) and handle.report()["keep_tokens"] == 0.5


def test_multiply_adds_of_the_published_sizes():
    """One crop through SAM 3D Body's two backbones without patch embedding (1.0 and 0.75 G), share 0.7 as in the
    derivation."""

    class Wide(nn.Module):
        def __init__(self, swiglu):
            super().__init__()
            self.attn, self.mlp, self.norm1 = nn.Module(), nn.Module(), nn.LayerNorm(1280, device="meta")
            self.attn.qkv, self.attn.proj = (nn.Linear(1280, n, device="meta") for n in (3840, 1280))
            names = [(1280, 5120), (1280, 5120), (5120, 1280)] if swiglu else [(1280, 5120), (5120, 1280)]
            for i, (a, b) in enumerate(names):
                setattr(self.mlp, f"w{i}", nn.Linear(a, b, device="meta"))

    for swiglu, patches, front, step, rows in (
        (True, 1024, 5, 213, {1024: 950.9, 768: 702.6, 512: 473.3, 384: 366.3}),
        (False, 768, 0, 160, {768: 532.3, 576: 393.0, 384: 264.4}),
    ):
        blocks = [Wide(swiglu)] * 32
        for keep, want in rows.items():
            cfg = MergeConfig(keep=keep + front, per_block=step, person_share=0.7)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                schedule = cfg.schedule(patches + front, 32, front)
            embed = patches * 3 * 256 * 1280
            assert (stack_macs(blocks, None, patches + front, schedule) + embed) / 1e9 == pytest.approx(want, rel=0.002)
