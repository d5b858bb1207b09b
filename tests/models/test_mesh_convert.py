"""Official layouts: recognised, converted, loaded strictly; clear errors; parameters and multiply-adds against the
papers."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up.command import command
from made_up.smpl_files import write_topology
from PIL import Image
from safetensors.torch import save_file

from tore_fast import models
from tore_fast.models import list_models, load, model_entry, save
from tore_fast.models._checkpoint import convert
from tore_fast.models._count import count_model, params_as_printed, shipped_counts
from tore_fast.models._registry import nearest_name
from tore_fast.models._weights import read_state_dict
from tore_fast.models.mesh import layouts as hmr
from tore_fast.models.mesh._efficientnet_keys import efficientnet_key
from tore_fast.pipelines.batch import ModelFactory
from tore_fast.pipelines.images import ImagePipeline

SMALL = dict(backbone=None, feature_dim=24, dim_1=32, dim_2=16, feedforward_1=48, feedforward_2=32)
BERT = dict(backbone=None, feature_dim=24, hidden=(32, 16, 16), widths=(12, 8), feedforward=(48, 32, 32), camera_dim=10)
HAND = dict(mesh="free_hand", num_joints=21)
MODELS = {
    "FastMETRO": lambda: models.FastMETRO(models.FastMETROConfig(**SMALL, layers=2)),
    "FastMETRO paper era": lambda: models.FastMETRO(
        models.FastMETROConfig(**SMALL, shared_reduction=True, learned_upsample=False)
    ),
    "FastMETRO with SMPL head": lambda: models.FastMETRO(models.FastMETROConfig(**SMALL, smpl_head=True)),
    "FastMETRO hand": lambda: models.FastMETRO(models.FastMETROConfig(**SMALL, **HAND)),
    "TORE on FastMETRO": lambda: models.FastMETRO_TORE(
        models.FastMETROToreConfig(**SMALL, dim_3=16, feedforward_3=32, keep_ratio=0.5, selector_dim=8)
    ),
    "TORE on FastMETRO hand, GTR alone": lambda: models.FastMETRO_TORE(
        models.FastMETROToreConfig(**SMALL, **HAND, dim_3=16, feedforward_3=32, selector="none")
    ),
    "METRO": lambda: models.METRO(models.METROConfig(**BERT)),
    "METRO hand": lambda: models.METRO(models.METROConfig(**BERT, **HAND, pooled=True, camera_from_joints=True)),
    "TORE on METRO": lambda: models.METRO_TORE(models.METROToreConfig(**BERT, dim_3=16, feedforward_3=32)),
    "TORE on METRO hand": lambda: models.METRO_TORE(models.METROToreConfig(**BERT, **HAND, dim_3=16, feedforward_3=32)),
    "Mesh Graphormer": lambda: models.MeshGraphormer(models.MeshGraphormerConfig(**BERT, grid_dim=20)),
    "Mesh Graphormer hand": lambda: models.MeshGraphormer(
        models.MeshGraphormerConfig(**BERT, **HAND, grid_dim=20, camera_from_joints=True)
    ),
}


def official(model, dead: bool = True) -> dict[str, torch.Tensor]:
    """The model's weights as an official training would have saved them: prefix, profiler counters, unused weights."""
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    state["module.transformer_1.total_ops"] = torch.zeros(1)
    if dead and hasattr(model, "trans_encoder"):
        state["module.trans_encoder.0.bert.embeddings.word_embeddings.weight"] = torch.zeros(7, 3)
        state["module.trans_encoder.1.bert.pooler.dense.bias"] = torch.zeros(5)
        if isinstance(model, models.MeshGraphormer):
            state["module.trans_encoder.2.bert.encoder.layer.0.graph_conv.skip_conv.W"] = torch.zeros(3)
    return state


@pytest.mark.parametrize("name", list(MODELS))
def test_convert_save_reload(name, tmp_path, capsys):
    model = MODELS[name]().eval()
    torch.save({"state_dict": official(model)}, tmp_path / "state_dict.bin")
    assert command("convert", tmp_path / "state_dict.bin", tmp_path / "out") == 0
    said = capsys.readouterr().out
    dead = (2 + isinstance(model, models.MeshGraphormer)) * hasattr(model, "trans_encoder")
    assert "tensors kept" in said and (f"dropped {dead} tensors" in said if dead else "dropped" not in said)
    layout = next(k for k in hmr.LAYOUTS if type(model) is hmr.LAYOUTS[k].model)
    assert f"{layout} layout, {len(model.state_dict())} tensors kept" in said
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["config"]["mesh"] == ("mano" if "hand" in name else "smpl")
    free = "free_hand" if "hand" in name else "free"
    for source in ("out", "out/model.safetensors", "state_dict.bin"):
        again = load(tmp_path / source, mesh=free, num_joints=model.config.num_joints)
        assert type(again) is type(model) and not again.training
        x = torch.randn(1, 24, 7, 7)
        x = (x.mean((2, 3)), torch.randn(1, 20, 7, 7)) if isinstance(model, models.MeshGraphormer) else x
        torch.testing.assert_close(again(x).vertices, model(x).vertices)


def test_named_model_and_wrong_shape(tmp_path):
    model = MODELS["TORE on FastMETRO"]()
    state = official(model)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"does not fit FastMETRO_TORE.*missing.*of another shape"):
        load(tmp_path / "a.safetensors", model="fastmetro_tore_s_eb0")


def test_wrong_files_name_the_nearest_layout(tmp_path):
    state = official(MODELS["TORE on FastMETRO"]())
    gone = [k for k in state if "transformer_1.encoder.norm" in k or "cam_predictor" in k]
    for k in gone:
        del state[k]
    state["module.extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "broken.bin")
    with pytest.raises(
        ValueError, match=r"broken.bin: no known layout; nearest is TORE on FastMETRO .*lacks.*and has extra"
    ):
        load(tmp_path / "broken.bin", mesh="free")
    torch.save(official(MODELS["METRO"]()), tmp_path / "metro.bin")
    with pytest.raises(ValueError, match=r"no layout of 'fastmetro'; nearest is METRO"):
        convert(tmp_path / "metro.bin", tmp_path / "x", "fastmetro")
    with pytest.raises(ValueError, match="upstream must be one of"):
        load(tmp_path / "metro.bin", "mtro")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.bin")
    (tmp_path / "text.bin").write_text("no weights")
    with pytest.raises(ValueError, match="text.bin: not"):
        load(tmp_path / "text.bin")
    (tmp_path / "cut.bin").write_text("")
    with pytest.raises(ValueError, match=r"cut.bin: not a readable weight file \(the file is empty\)"):
        load(tmp_path / "cut.bin")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="a.bin: no known layout; it shares no name with any of them and has a$"):
        convert(tmp_path / "a.bin", tmp_path / "x")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_code_is_not_executed(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(ValueError, match="never executed"):
        load(tmp_path / "evil.bin")
    assert "executed" not in capsys.readouterr().out


def efficientnet_names() -> list[str]:
    """Keys of efficientnet_pytorch's b0 without the classifier."""
    norm = [f".{s}" for s in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    official_names = ["_conv_stem.weight", "_conv_head.weight", *(f"_bn{i}{s}" for i in (0, 1) for s in norm)]
    for i in range(16):
        parts = ["_depthwise_conv.weight", "_project_conv.weight", *(f"_bn{n}{s}" for n in (1, 2) for s in norm)]
        parts += [f"_se_{e}.{s}" for e in ("reduce", "expand") for s in ("weight", "bias")]
        parts += ["_expand_conv.weight", *(f"_bn0{s}" for s in norm)] if i else []
        official_names += [f"_blocks.{i}.{p}" for p in parts]
    return official_names


NAMED = {  # config fields besides those of the registered model -> the name that a converted file is given
    "fastmetro_l_h64": {},
    "fastmetro_s_r50_smpl": {},
    "fastmetro_m_r50_paper": {},
    "fastmetro_s_eb0_hand": {},
    "fastmetro_tore_l_eb0_itp75": {},
    "fastmetro_tore_s_r50_gtr": {},
    "fastmetro_tore_m_r50_hand": {"keep_ratio": 0.5},
    "metro_r50_hand": {},
    "metro_tore_h64_itp20": {},
    "metro_tore_r50": {"dim_3": 128},
    "graphormer_h64": {},
}


@pytest.mark.parametrize("name", list(NAMED))
def test_a_converted_model_gets_the_nearest_nearest_name(name):
    with torch.device("meta"):
        model = models.create_model(name, backbone=None, **NAMED[name])
        config = dataclasses.replace(model_entry(name).config, mesh="smpl", **NAMED[name])
        model.config = dataclasses.replace(config, num_vertices=model.config.num_vertices)
    assert nearest_name(model) == name


def test_efficientnet_names_map_one_to_one():
    from tore_fast.models.backbones import create_backbone

    official_names = efficientnet_names()
    with torch.device("meta"):
        ours = list(create_backbone("efficientnet_b0").state_dict())
    assert sorted(efficientnet_key(n) for n in official_names) == sorted(ours)
    assert efficientnet_key("_fc.weight") is None
    assert hmr.native_key("backbone._blocks.0._bn1.bias") == "backbone.blocks.0.0.bn1.bias"


def test_efficientnet_checkpoint(tmp_path):
    """TORE with EfficientNet-b0 as efficientnet_pytorch names its weights, wrapped and with its unused classifier."""
    small = {**SMALL, "backbone": "efficientnet_b0", "feature_dim": 0}
    model = models.FastMETRO_TORE(
        models.FastMETROToreConfig(**small, dim_3=16, feedforward_3=32, selector_dim=8)
    ).eval()
    state = official(model)
    for name in efficientnet_names():
        state[f"module.backbone.{name}"] = state.pop(f"module.backbone.{efficientnet_key(name)}")
    assert not any("backbone.blocks" in k for k in state)
    state["module.backbone._fc.weight"] = torch.zeros(1000, 1280)
    torch.save(state, tmp_path / "eb0.bin")
    done = convert(tmp_path / "eb0.bin", tmp_path / "out")
    assert done.dropped == ("backbone._fc.weight",) and done.name == "fastmetro_tore_s_eb0"
    again, x = load(tmp_path / "out", mesh="free"), torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(again(x).vertices, model(x).vertices)


def test_a_converted_checkpoint_predicts_from_the_command_line(tmp_path, capsys):
    """Official file -> folder -> meshes of a image; the file itself gives the same, and so does Python."""
    smpl, file = tmp_path / "smpl", tmp_path / "FastMETRO.bin"
    write_topology(smpl)
    model = models.FastMETRO(models.FastMETROConfig(**{**SMALL, "backbone": "resnet50", "feature_dim": 0}))
    torch.save(official(model), file)
    image = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "p.png")
    assert command("convert", file, tmp_path / "ours", "--mesh-data", smpl) == 0
    assert "loads with the topology files" in capsys.readouterr().out
    predict = (
        "predict",
        tmp_path / "p.png",
        "--format",
        "npz",
        "--boxes",
        "full",
        "--mesh-data",
        smpl,
        "--device",
        "cpu",
    )
    for out, source in (("a", ("--model", tmp_path / "ours")), ("b", ("--checkpoint", file))):
        assert command(*predict, *source, "--out", tmp_path / out) == 0
    a, b = (np.load(tmp_path / out / "p.npz")["vertices"] for out in "ab")
    np.testing.assert_array_equal(a, b)
    again = [
        ImagePipeline(load(tmp_path / "ours", mesh_data=smpl), mesh_data=smpl, device="cpu"),
        ImagePipeline(tmp_path / "ours", mesh_data=smpl, device="cpu"),
        ModelFactory("default", str(file), "cpu", options={"mesh_data": str(smpl)})(),  # what a batch worker runs
    ]
    for pipeline in again:
        np.testing.assert_allclose(pipeline.predict([image], "full")[0].people[0].vertices, a[0], atol=1e-6)
    assert [p.model.prepared for p in again] == [False, True, True]  # a module handed in stays as it is
    attention = (
        "viz",
        "attention",
        tmp_path / "p.png",
        "--checkpoint",
        file,
        "--mesh-data",
        smpl,
        "--layer",
        "cross_1",
    )
    assert command(*attention, "--out", tmp_path / "maps") == 0
    assert (tmp_path / "maps/cross_1.1_image.png").is_file() and "random weights" not in capsys.readouterr().err
    assert command(*predict[:2], "--model", tmp_path / "ours", "--out", tmp_path / "c") == 2  # no topology files
    assert "TORE_FAST_MESH_DATA" in capsys.readouterr().err


def test_mesh_of_an_official_file_loaded_into_a_named_model(tmp_path):
    """Topology files mean the mesh they describe; without them the registered model's free mesh."""
    write_topology(tmp_path / "smpl")
    torch.save(official(MODELS["TORE on FastMETRO"]()), tmp_path / "a.bin")
    fields = dict(**SMALL, dim_3=16, feedforward_3=32, keep_ratio=0.5, selector_dim=8)
    for given, name in (({"mesh_data": tmp_path / "smpl"}, "smpl"), ({}, "free")):
        assert load(tmp_path / "a.bin", model="fastmetro_tore_s_r50", **given, **fields).mesh.name == name
    with pytest.raises(ValueError, match="FastMETRO_TORE: unknown config field 'head'; there are backbone, dilated"):
        load(tmp_path / "a.bin", mesh="free", head=4)


def test_round_trip_of_every_config_field(tmp_path):
    model = models.FastMETRO_TORE(
        models.FastMETROToreConfig(**SMALL, dim_3=16, selector="cluster", image_size=(224, 192), heads=4)
    )
    save(model, tmp_path, "fastmetro_tore_s_r50")
    assert load(tmp_path).config == model.config


# Measured by running the official code: parameters without backbone (M, dead weights included),
# multiply-adds without backbone (G).
MEASURED = {
    "fastmetro_s_r50": (10.041, 2.336),
    "fastmetro_m_r50": (17.861, 4.550),
    "fastmetro_l_r50": (25.680, 6.765),
    "fastmetro_s_r50_hand": (9.180, 1.183),
    "fastmetro_m_r50_hand": (16.999, 2.296),
    "fastmetro_l_r50_hand": (24.818, 3.409),
    "fastmetro_tore_l_r50_itp0": (26.740, 1.338),
    "fastmetro_tore_l_r50": (26.729, 1.216),
    "fastmetro_tore_l_r50_itp50": (26.712, 1.035),
    "fastmetro_tore_l_r50_itp75": (26.698, 0.891),
    "fastmetro_tore_s_r50": (10.165, 0.488),
    "metro_r50": (115.010, 27.506),
    "metro_r50_hand": (101.368, 12.941),
    "metro_tore_r50": (116.325, 1.289),
    "graphormer_h64": (98.152 + 2.049, 22.407),  # HRNet's unused classifier counts among the dead weights here
}


@pytest.mark.parametrize("name", list(MEASURED))
def test_counts_against_the_official_code(name):
    c = count_model(name)
    params, gmacs = MEASURED[name]
    assert (c.params - c.backbone_params + c.unused_params) / 1e6 == pytest.approx(params, rel=1e-3)
    assert (c.macs - c.backbone_macs) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_counts_against_every_number_of_the_papers():
    """Within 1 % or half of the last printed digit (0.05). Parameters as each paper counts them: FastMETRO without
    trunk and
    learned up-sampling; METRO and Graphormer with 44.8 M weights that nothing reads, METRO without its up-sampling."""
    close = lambda got, printed: got == pytest.approx(printed, rel=0.01, abs=0.05)
    counts, seen = shipped_counts(), []
    for name in list_models():
        entry, c = model_entry(name), counts[name]
        if entry.paper is None or entry.family not in ("fastmetro", "tore", "metro", "graphormer", "tcformer"):
            continue
        seen.append(name)
        params, macs = entry.paper.params_m, entry.paper.gmacs
        if macs is not None and "rounds 1.26 down" not in entry.paper.note:
            assert close(c.macs / 1e9, macs), (name, c.macs, macs)
        if params is not None:
            ours = params_as_printed(entry, c)
            assert close(ours / 1e6, params), (name, ours, params)
    assert len(seen) >= 24


def test_shipped_counts_are_those_of_the_code():
    """What `tore-fast list` and docs/models.md print: every fifth model and those measured above, counted anew."""
    shipped, names = shipped_counts(), list_models()
    assert list(shipped) == names, "run tools/models_page.py"
    for name in sorted({*names[::5], *MEASURED}):
        c = count_model(name)
        assert c[:3] == shipped[name][:3], f"{name}: run tools/models_page.py"
        assert c.macs == pytest.approx(shipped[name].macs, rel=1e-4), f"{name}: run tools/models_page.py"


def test_the_page_holds_the_table_of_the_code():
    root = Path(__file__).resolve().parents[2]
    tool = runpy.run_path(str(root / "tools/models_page.py"))
    text = (root / "docs/models.md").read_text()
    assert tool["START"] + tool["table"]() + tool["END"] in text, "run tools/models_page.py"
    assert f"{len(list_models())} names" in text


class Settings:
    """Stands for what Lightning pickles beside the weights."""

    def __reduce__(self):
        return print, ("executed",)


TINY_HOST = dict(embed_dim=64, depth=1, num_heads=1, decoder_depth=1)
DECODER = dict(decoder_heads=1, decoder_mlp_dim=16, decoder_dim=16, drop_path_rate=0.0)
OTHER_FAMILIES = {  # layout -> registered name, its small config, what else lies in the file
    "tcformer": ("tcformer_light", dict(num_classes=7), {}),
    "hot": ("mixste_9", dict(channels=16, heads=8, depth=4, mlp_hidden=24), {"rng": np.random.RandomState(1)}),
    "hmr2": ("hmr2_vits", {**TINY_HOST, **DECODER}, {"hyper_parameters": Settings()}),
    "camerahmr": ("camerahmr_vits", {**TINY_HOST, **DECODER, "fov_net": False}, {"callbacks": [Settings()]}),
    "densekp": ("densekp_vith", TINY_HOST, {}),
}


@pytest.mark.parametrize("layout", list(OTHER_FAMILIES))
def test_other_families_are_recognised_and_converted(layout, tmp_path, capsys):
    name, fields, beside = OTHER_FAMILIES[layout]
    model = models.create_model(name, **fields).eval()
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    if beside and layout != "hot":
        state["module.smpl.betas"] = torch.zeros(3)
    torch.save({"model_pos" if layout == "hot" else "state_dict": state, **beside}, tmp_path / "official.ckpt")
    assert command("convert", tmp_path / "official.ckpt", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{layout} layout, {len(model.state_dict())} tensors kept" in said and "executed" not in said
    assert ("dropped 1 tensors" in said) == ("module.smpl.betas" in state)
    assert f"(model {name.partition('_')[0]}_" in said  # of toy sizes no registered size is nearest
    for again in (load(tmp_path / "out"), load(tmp_path / "official.ckpt")):
        assert type(again) is type(model) and not again.training
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_objects_beside_the_weights_are_left_out_and_never_run(tmp_path, capsys):
    torch.save({"state_dict": official(MODELS["METRO"]()), "config": Settings()}, tmp_path / "metro.bin")
    assert convert(tmp_path / "metro.bin", tmp_path / "x").layout == "METRO"
    assert "executed" not in capsys.readouterr().out
