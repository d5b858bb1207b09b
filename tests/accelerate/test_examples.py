"""The examples of docs/accelerate.md, one per kind of model, as they stand, on small models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from made_up import foreign_body, foreign_vit

import tore_fast
from tore_fast.models import create_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accelerate.md"
EXAMPLES = {
    code.split(":")[0].removeprefix("# "): code
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
}


def timm():
    import timm

    size = dict(img_size=128, patch_size=16, embed_dim=32, depth=6, num_heads=2)
    return {"vit": timm.create_model("vit_base_patch14_reg4_dinov2", **size).eval()}


def transformers():
    hf = pytest.importorskip("transformers", reason="its example runs where transformers is installed")
    sizes = dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=128, patch_size=16)
    return {"model": foreign_vit.randomise(hf.Dinov2Model(hf.Dinov2Config(**sizes)))}


def sam3d():
    estimator = foreign_body.Estimator()
    foreign_vit.randomise(estimator.model)
    return {"estimator": estimator, "frames": [torch.rand(3, 128, 128)] * 2, "boxes": [None] * 2}


MODELS = {
    "timm": timm,
    "transformers": transformers,
    "the dinov3 repository": lambda: {"model": foreign_vit.randomise(foreign_vit.RotaryViT())},
    "4D-Humans or CameraHMR": lambda: {
        "model": foreign_vit.randomise(foreign_vit.Wrapped(foreign_vit.PoseViT((128, 128))))
    },
    "this package": lambda: {"model": create_model("hmr2_vitt", depth=4, embed_dim=32, decoder_depth=1).eval()},
    "SAM 3D Body": sam3d,
}


def test_every_kind_has_an_example():
    assert set(EXAMPLES) == set(MODELS)


@pytest.mark.parametrize("kind", MODELS)
def test_example(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, fullgraph: compile_(model, fullgraph=fullgraph, backend="aot_eager")
    )
    images, mask = torch.randn(2, 3, 128, 128), torch.zeros(2, 128, 128)
    mask[:, 32:96, 48:80] = 1
    names = {"tore_fast": tore_fast, "torch": torch, "images": images, "mask": mask, **MODELS[kind]()}
    with torch.no_grad():
        exec(compile(EXAMPLES[kind], f"{PAGE.name}: {kind}", "exec"), names)
    out = names.get("features", names.get("output"))
    assert out is None or (torch.isfinite(out).all() and out.shape[0] == 2)
    assert "people" not in names or len(names["people"]) == 2
