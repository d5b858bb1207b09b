"""Every registered model: built without memory, its config's round trip, its counts; a tiny one of each class does all
it can."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tore_fast.models import create_model, list_models, load, model_entry, save
from tore_fast.models._config import make_config
from tore_fast.models._count import shipped_counts
from tore_fast.models._registry import TASKS, facts_of, nearest_name

MESH = dict(backbone=None, feature_dim=8, dim_1=16, dim_2=8, feedforward_1=16, feedforward_2=8, heads=2)
BERT = dict(
    backbone=None, feature_dim=8, hidden=(16, 16, 8), widths=(16, 8), feedforward=(16, 16, 16), layers=1, heads=2
)
HOST = dict(
    embed_dim=64, depth=1, num_heads=1, decoder_depth=1, decoder_heads=1, decoder_mlp_dim=8, decoder_dim=16,
    drop_path_rate=0.0,
)  # fmt: skip
TOKENS = dict(
    embed_dims=(16, 32), num_heads=(1, 1), mlp_ratios=(2, 2), depths=(1, 1), sr_ratios=(8, 4), sample_ratios=(0.25,)
)
NECK = dict(neck_channels=32, neck_heads=(1, 1), neck_mlp_ratios=(2, 2), neck_sr_ratios=(8, 4))
LIFTER = dict(frames=9, channels=16)
MOTION = dict(latent_tokens=2, latent_dim=8, ff_size=8, heads=2, encoder_layers=1, decoder_layers=1)
FEATURES = {"resnet50": 2048, "hrnet_w64": 2048, "efficientnet_b0": 1280, "regnety_004": 208}  # channels of backbones
# class -> (registered name, config fields of a tiny one, shape of its input, whether it is exported and compiled here)
TINY: dict[str, tuple[str, dict, tuple[int, ...], bool]] = {
    "FastMETRO": ("fastmetro_s_r50", MESH, (8, 7, 7), True),
    "FastMETRO_TORE": ("fastmetro_tore_s_r50", {**MESH, "dim_3": 8, "feedforward_3": 8}, (8, 7, 7), False),
    "METRO": ("metro_r50", BERT, (8, 7, 7), False),
    "METRO_TORE": ("metro_tore_r50", {**BERT, "dim_3": 8, "feedforward_3": 8, "heads_3": 2}, (8, 7, 7), False),
    "MeshGraphormer": ("graphormer_h64", {**BERT, "grid_dim": 8}, (), False),  # reads two features: test_mesh.py
    "HMR2": ("hmr2_vits", HOST, (3, 256, 256), True),
    "CameraHMR": ("camerahmr_vits", HOST, (), False),  # reads crops and their boxes: test_smpl.py
    "HumanFoV": ("humanfov", {}, (), False),  # 67 million weights
    "DenseKP": ("densekp_vith", dict(embed_dim=64, depth=1, num_heads=1, decoder_depth=1), (3, 256, 256), False),
    "TCFormer": ("tcformer_light", {**TOKENS, "num_classes": 3}, (3, 64, 64), False),
    "TCFormerPose": ("tcformer_light_wholebody", {**TOKENS, **NECK}, (3, 64, 64), False),
    "TCFormerHMR": ("tcformer_light_hmr", TOKENS, (3, 64, 64), False),
    "PPT": ("ppt_s", dict(stem_channels=8, dim=16, depth=4, heads=2, mlp_dim=16), (3, 256, 192), False),
    "PersonDetector": ("person_detector", {}, (3, 224, 224), False),
    "BodyLandmarks": ("body_landmarks_lite", {}, (3, 256, 256), False),
    "Mixste": ("mixste_9", {**LIFTER, "depth": 1, "heads": 2, "mlp_hidden": 16}, (9, 17, 2), True),
    "Mhformer": ("mhformer_9", {**LIFTER, "mlp_hidden": 16, "layers": 2}, (9, 17, 2), False),
    "Motionbert": ("motionbert_lite_27", {**LIFTER, "depth": 1, "heads": 2, "mlp_hidden": 16}, (9, 17, 3), False),
    "Motionagformer": ("motionagformer_27", {**LIFTER, "depth": 1, "heads": 2, "rep_channels": 8}, (9, 17, 3), False),
    "MotionVAE": ("fasthmr_motion_vae", MOTION, (12, 133), False),
    "FastHMRMotion": ("fasthmr_motion", {**MOTION, "frames": 12, "condition_dim": 8}, (), False),  # test_motion.py
}
for _name in list_models():  # a class that nobody made small yet: its first registered model, whole
    _entry = model_entry(_name)
    _fed = {"backbone": None, "feature_dim": 8} if _entry.task == "mesh" else {}
    TINY.setdefault(_entry.model.__name__, (_name, _fed, (8, 7, 7) if _fed else _entry.input_shape, False))


def tiny(cls: str) -> torch.nn.Module:
    torch.manual_seed(0)
    name, fields, _, _ = TINY[cls]
    return create_model(name, **fields).eval()


def tensors(out: object) -> list[torch.Tensor]:
    """All tensors of an output, in order."""
    if isinstance(out, torch.Tensor):
        return [out]
    items = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else []
    return [t for item in items for t in tensors(item)]


def test_the_table_names_classes_that_there_are():
    assert {model_entry(n).model.__name__ for n in list_models()} >= TINY.keys()


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task):
    assert list_models(task=task)
    assert all(model_entry(n).facts.task == task for n in list_models(task=task))


@pytest.mark.parametrize("name", list_models())
def test_every_name(name):
    """Config round trip through JSON, and the parameters the shipped table says."""
    entry = model_entry(name)
    config = entry.config
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert make_config(entry.model, None, fields) == config
    assert make_config(entry.model, config, {}) == config
    counts = shipped_counts()[name]
    # a mesh model is built behind its backbone, which is the same for many names
    fed = {"backbone": None, "feature_dim": FEATURES[config.backbone]} if entry.task == "mesh" else {}
    try:
        with torch.device("meta"):
            model = entry.build(**fed)
    except NotImplementedError:  # a constructor that reads values
        return
    assert facts_of(model) is entry.facts and type(model) is entry.model
    again = make_config(entry.model, None, json.loads(json.dumps(dataclasses.asdict(model.config))))
    assert again == model.config
    assert sum(p.numel() for p in model.parameters()) == counts.params - counts.backbone_params


@pytest.mark.parametrize("cls", TINY)
def test_a_tiny_one(cls, tmp_path):
    """Forward twice the same, backward to finite gradients, saved and loaded with the same output."""
    name, fields, shape, _ = TINY[cls]
    if cls == "HumanFoV":
        pytest.skip("67 million weights; test_smpl_convert.py saves and loads it")
    model = tiny(cls)
    save(model, tmp_path, name)
    again = load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert model_entry(nearest_name(model)).model is type(model)
    if not shape:
        return
    x = torch.rand(2, *shape)
    with torch.no_grad():
        first, second = tensors(model(x)), tensors(again(x))
    assert first and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(bool(t.isfinite().all()) for t in first if t.is_floating_point())
    loss = sum(t.float().square().mean() for t in tensors(model(x)) if t.requires_grad)
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("cls", [c for c, row in TINY.items() if row[3]])
def test_compiles_whole_and_exports(cls):
    model, shape = tiny(cls), TINY[cls][2]
    x = torch.rand(2, *shape)
    with torch.no_grad():
        want = tensors(model(x))
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        exported = torch.export.export(model, (x,)).module()
        for got in (compiled(x), exported(x)):
            for a, b in zip(tensors(got), want, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", TINY)
def test_fields_are_keywords(cls):
    name, fields, _, _ = TINY[cls]
    kind = model_entry(name).model
    with pytest.raises(ValueError, match="unknown config field 'no_such'"):
        kind(no_such=1)
    with pytest.raises(TypeError, match="config must be a"):
        kind(object())
    given = {k: v for k, v in fields.items() if k != "backbone"}
    if given and "backbone" not in fields:
        with torch.device("meta"):
            made = kind(**{**model_entry(name).fields, **fields}).config
        assert all(getattr(made, k) == v for k, v in given.items())


def test_mistyped_fields_are_refused_by_name():
    from tore_fast.models import FastMETRO_TORE, FastMETROToreConfig

    assert FastMETRO_TORE(backbone=None, keep_ratio=0.5).config.keep_ratio == 0.5
    assert FastMETRO_TORE(FastMETROToreConfig(backbone=None), keep_ratio=0.5).config.keep_ratio == 0.5
    for field, value in (
        ("qkv_bias", "false"),
        ("depths", 3),
        ("num_classes", True),
        ("k", 2.5),
        ("embed_dims", [1, "a"]),
    ):
        with pytest.raises(ValueError, match=f"TCFormer: {field} must be"):
            create_model("tcformer_light", **{field: value})
