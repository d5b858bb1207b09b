"""Official layouts: recognised, converted, loaded strictly; clear errors; parameters and multiply-adds against the papers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tore_fast.cli import main
from tore_fast.models import (
    METRO,
    FastMETRO,
    FastMETRO_TORE,
    FastMETROConfig,
    FastMETROToreConfig,
    MeshGraphormer,
    MeshGraphormerConfig,
    METROConfig,
    from_pretrained,
    load_pretrained,
    model_entry,
    save_pretrained,
)
from tore_fast.models._count import count_model
from tore_fast.models.convert import convert, hmr, read_state_dict
from tore_fast.models.convert.backbones import efficientnet_key

SMALL = dict(backbone=None, feature_dim=24, dim_1=32, dim_2=16, feedforward_1=48, feedforward_2=32)
BERT = dict(backbone=None, feature_dim=24, hidden=(32, 16, 16), widths=(12, 8), feedforward=(48, 32, 32), camera_dim=10)
MODELS = {
    "FastMETRO": lambda: FastMETRO(FastMETROConfig(**SMALL, layers=2)),
    "FastMETRO paper era": lambda: FastMETRO(FastMETROConfig(**SMALL, shared_reduction=True, learned_upsample=False)),
    "FastMETRO hand": lambda: FastMETRO(FastMETROConfig(**SMALL, mesh="free_hand", num_joints=21)),
    "TORE on FastMETRO": lambda: FastMETRO_TORE(
        FastMETROToreConfig(**SMALL, dim_3=16, feedforward_3=32, keep_ratio=0.5, selector_dim=8)
    ),
    "METRO": lambda: METRO(METROConfig(**BERT)),
    "Mesh Graphormer": lambda: MeshGraphormer(MeshGraphormerConfig(**BERT, grid_dim=20)),
}


def official(model, dead: bool = True) -> dict[str, torch.Tensor]:
    """The model's weights as an official training would have saved them: prefix, profiler counters, unused weights."""
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    state["module.transformer_1.total_ops"] = torch.zeros(1)
    if dead and hasattr(model, "trans_encoder"):
        state["module.trans_encoder.0.bert.embeddings.word_embeddings.weight"] = torch.zeros(7, 3)
        state["module.trans_encoder.1.bert.pooler.dense.bias"] = torch.zeros(5)
    return state


@pytest.mark.parametrize("name", list(MODELS))
def test_convert_save_reload(name, tmp_path, capsys):
    model = MODELS[name]().eval()
    torch.save({"state_dict": official(model)}, tmp_path / "state_dict.bin")
    main_exit(["convert", str(tmp_path / "state_dict.bin"), str(tmp_path / "out")], 0)
    said = capsys.readouterr().out
    assert "tensors kept" in said and ("dropped 2 tensors" in said) == hasattr(model, "trans_encoder")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["config"]["mesh"] == ("mano" if "hand" in name else "smpl")
    free = "free_hand" if "hand" in name else "free"
    for source in ("out", "out/model.safetensors", "state_dict.bin"):
        again = from_pretrained(tmp_path / source, mesh=free, num_joints=model.config.num_joints)
        assert type(again) is type(model) and not again.training
        x = torch.randn(1, 24, 7, 7)
        x = (x.mean((2, 3)), torch.randn(1, 20, 7, 7)) if name == "Mesh Graphormer" else x
        torch.testing.assert_close(again(x).vertices, model(x).vertices)


def main_exit(argv: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == code


def test_named_model_and_wrong_shape(tmp_path):
    model = MODELS["TORE on FastMETRO"]()
    state = official(model)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"does not fit FastMETRO_TORE.*missing.*of another shape"):
        from_pretrained(tmp_path / "a.safetensors", model="fastmetro_tore_s_eb0")


def test_wrong_files_name_the_nearest_layout(tmp_path):
    state = official(MODELS["TORE on FastMETRO"]())
    gone = [k for k in state if "transformer_1.encoder.norm" in k or "cam_predictor" in k]
    for k in gone:
        del state[k]
    state["module.extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "broken.bin")
    with pytest.raises(ValueError, match=r"broken.bin: no known layout; nearest is TORE on FastMETRO .*lacks.*and has extra"):
        from_pretrained(tmp_path / "broken.bin", mesh="free")
    torch.save(official(MODELS["METRO"]()), tmp_path / "metro.bin")
    with pytest.raises(ValueError, match=r"no layout of 'fastmetro'; nearest is METRO"):
        convert(tmp_path / "metro.bin", tmp_path / "x", "fastmetro")
    with pytest.raises(ValueError, match="upstream must be one of"):
        from_pretrained(tmp_path / "metro.bin", "mtro")
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path / "nothing.bin")
    (tmp_path / "text.bin").write_text("no weights")
    with pytest.raises(ValueError, match="text.bin: not"):
        from_pretrained(tmp_path / "text.bin")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_code_is_not_executed(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(ValueError, match="never executed"):
        from_pretrained(tmp_path / "evil.bin")
    assert "executed" not in capsys.readouterr().out


def test_efficientnet_names_map_one_to_one():
    from tore_fast.models.backbones import create_backbone

    norm = [f".{s}" for s in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    official_names = ["_conv_stem.weight", "_conv_head.weight", *(f"_bn{i}{s}" for i in (0, 1) for s in norm)]
    for i in range(16):
        parts = ["_depthwise_conv.weight", "_project_conv.weight", *(f"_bn{n}{s}" for n in (1, 2) for s in norm)]
        parts += [f"_se_{e}.{s}" for e in ("reduce", "expand") for s in ("weight", "bias")]
        parts += ["_expand_conv.weight", *(f"_bn0{s}" for s in norm)] if i else []
        official_names += [f"_blocks.{i}.{p}" for p in parts]
    with torch.device("meta"):
        ours = list(create_backbone("efficientnet_b0").state_dict())
    assert sorted(efficientnet_key(n) for n in official_names) == sorted(ours)
    assert efficientnet_key("_fc.weight") is None
    assert hmr.native_key("backbone._blocks.0._bn1.bias") == "backbone.blocks.0.0.bn1.bias"


def test_round_trip_of_every_config_field(tmp_path):
    model = FastMETRO_TORE(FastMETROToreConfig(**SMALL, dim_3=16, selector="cluster", image_size=(224, 192), heads=4))
    save_pretrained(model, tmp_path, "fastmetro_tore_s_r50")
    assert load_pretrained(tmp_path).config == model.config


# Measured by running the official code (hmr.md section 6): parameters without backbone (M, dead weights included),
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


@pytest.mark.parametrize("name", ["fastmetro_s_r50_paper", "fastmetro_l_r50_paper", "fastmetro_l_h64", "metro_r50",
                                  "metro_tore_r50", "fastmetro_tore_l_r50", "fastmetro_l_eb0"])  # fmt: skip
def test_counts_against_the_papers(name):
    c, paper = count_model(name), model_entry(name).paper
    if paper.params_m is not None and name.endswith("_paper"):
        assert (c.params - c.backbone_params) / 1e6 == pytest.approx(paper.params_m, rel=0.01)
    if paper.gmacs is not None:
        assert c.macs / 1e9 == pytest.approx(paper.gmacs, rel=0.01)


def test_metro_counts_with_the_weights_nobody_reads():
    c, paper = count_model("metro_r50"), model_entry("metro_r50").paper
    upsampling = 431 * 1723 + 1723 + 1723 * 6890 + 6890
    assert (c.params - c.backbone_params + c.unused_params - upsampling) / 1e6 == pytest.approx(paper.params_m, rel=0.01)


def test_list_command(capsys):
    main_exit(["list", "fastmetro_tore_s_eb0*", "--json"], 0)
    found = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in found} >= {"fastmetro_tore_s_eb0", "fastmetro_tore_s_eb0_hand"}
    assert all(r["gmacs"] > 0.5 for r in found)
    main_exit(["list", "nothing*"], 1)
