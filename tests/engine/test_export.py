"""Files that run without this package: one tiny model of every class through onnxruntime, torch.export, AOTInductor."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models.test_all import BERT, TINY, tiny
from torch import nn

import tore_fast
from tore_fast import cli, ops
from tore_fast.engine import export as exporting
from tore_fast.models import create_model, model_entry
from tore_fast.ops._dispatch import is_plain

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
# one class of every family; docs/export.md has all models. Mesh Graphormer is built by hand below.
FAMILIES = {
    model_entry(row[0]).family: c
    for c, row in TINY.items()
    if model_entry(row[0]).task in exporting.TASKS and c not in ("CameraHMR", "TCFormerHMR")
}


class Maps(nn.Module):
    """Stands for HRNet in Mesh Graphormer: a map and its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.final_layer = nn.Conv2d(3, 8, 32, 32), nn.Conv2d(8, 8, 1)

    def grid_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.first(images)


def graphormer() -> nn.Module:
    model = create_model("graphormer_h64", **{**BERT, "grid_dim": 8}).eval()
    model.backbone, model.config = Maps(), dataclasses.replace(model.config, backbone="hrnet_w64")
    return model


@pytest.mark.parametrize("cls", FAMILIES.values(), ids=FAMILIES)
def test_onnx_of_every_family(cls, tmp_path):
    """Any batch, checked by onnxruntime at sizes 1 and 3; only operators of the ONNX standard; the contract inside."""
    import onnx

    model = graphormer() if cls == "MeshGraphormer" else tiny(cls)
    done = exporting.export(model, tmp_path / "m.onnx", dynamic_batch=True, check=True, name=cls)
    assert done.differences and max(done.differences.values()) <= exporting.LIMITS["fp32"]
    file = onnx.load(tmp_path / "m.onnx")
    assert {o.domain for o in file.opset_import} <= {"", "ai.onnx"} and not file.functions
    contract = json.loads((tmp_path / "m.onnx.json").read_text())
    assert contract == json.loads({p.key: p.value for p in file.metadata_props}["tore_fast"]) == done.contract
    assert contract["model"] == cls and contract["input"]["shape"][0] == "batch"
    assert [o.name for o in file.graph.output] == [o["name"] for o in contract["outputs"]]


def test_half_precision(tmp_path):
    done = exporting.export(tiny("HMR2"), tmp_path / "m.onnx", precision="fp16", check=True)
    assert done.contract["weights"] == "fp16" and done.contract["input"]["type"] == "float32"
    whole = exporting.export(tiny("HMR2"), tmp_path / "w.onnx")
    assert done.path.stat().st_size < 0.7 * whole.path.stat().st_size


ALONE = """
import sys, torch
x = torch.load(sys.argv[2], weights_only=True)
if sys.argv[1].endswith(".ts"):
    out = torch.jit.load(sys.argv[1])(x)
else:
    out = torch._inductor.aoti_load_package(sys.argv[1])(x)
assert "tore_fast" not in sys.modules
torch.save([*out], sys.argv[3])
"""


@pytest.mark.parametrize("suffix", [".aoti", ".ts"])
def test_a_fresh_process_without_this_package(suffix, tmp_path):
    model = tiny("FastMETRO_TORE")
    done = exporting.export(model, tmp_path / f"m{suffix}", dynamic_batch=True, check=True)
    file = tmp_path / "alone.pt2" if suffix == ".aoti" else done.path
    if suffix == ".aoti":
        file.write_bytes(done.path.read_bytes())
    x = torch.rand(5, 8, 7, 7)
    torch.save(x, tmp_path / "x")
    subprocess.run(
        [sys.executable, "-c", ALONE, file, tmp_path / "x", tmp_path / "y"], check=True, cwd=tmp_path, timeout=300
    )
    with torch.no_grad():
        want = [t for _, t in exporting.named_outputs(model(x))]
    for a, b in zip(torch.load(tmp_path / "y"), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_torch_export_file(tmp_path):
    done = exporting.export(tiny("Mixste"), tmp_path / "m.pt2", dynamic_batch=True, check=True)
    files = {"tore_fast.json": ""}
    torch.export.load(done.path, extra_files=files)
    assert json.loads(files["tore_fast.json"]) == done.contract
    assert done.contract["task"] == "lifting" and "H36M" in done.contract["input"]["layout"]


def test_what_cannot_be_exported_is_one_line(tmp_path):
    for model, file, said in (
        ("default", "m.tflite", "suffix must be one of"),
        (tiny("FastMETRO").train(), "m.onnx", "training mode"),
        (create_model("camerahmr_vits", depth=1).eval(), "m.onnx", "no field-of-view net"),
        (tiny("MotionVAE"), "m.onnx", "of task motion; exported are"),
        (nn.Linear(2, 2), "m.onnx", "of task None"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            exporting.export(model, tmp_path / file)
        assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="precision must be one of"):
        exporting.export("default", tmp_path / "m.onnx", precision="int8")


def test_a_wrong_file_is_found(tmp_path, monkeypatch):
    good = exporting.run_file
    monkeypatch.setattr(exporting, "run_file", lambda path, x: [1.01 * t for t in good(path, x)])
    with pytest.raises(ValueError, match="differ from eager"):
        exporting.export(tiny("Mixste"), tmp_path / "m.pt2", check=True)


def test_reference_is_a_context():
    with ops.use("reference"):
        assert is_plain()
    assert not is_plain()
    with pytest.raises(ValueError, match="'reference' or 'auto'"), ops.use("cuda"):
        pass


def test_the_command_and_the_page(tmp_path, capsys, monkeypatch):
    """The built-in model through the command line; then the page's example, run as it stands, without this package."""
    from PIL import Image

    from tore_fast.pipelines.demo_image import demo_image

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "default", "tore.onnx", "--dynamic-batch", "--check", "--json"])
    assert stopped.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["contract"]["input"]["shape"] == ["batch", 3, 112, 112] and facts["differences"]
    pixels, truth = demo_image()
    Image.fromarray(pixels).save("photo.png")
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.S))
    code = code.replace("(120, 40, 380, 600)", str(tuple(float(v) for v in truth.box)))
    code += "\nimport sys\nassert 'tore_fast' not in sys.modules and 'torch' not in sys.modules\n"
    code += "np.savez('found.npz', crop=image, vertices=vertices)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    found = np.load("found.npz")

    from tore_fast.geometry.crop import crop_of_box
    from tore_fast.geometry.warp import model_input
    from tore_fast.models import load

    x = model_input(pixels, crop_of_box(truth.box), 112)[None]
    assert np.abs(found["crop"] - x.numpy()).max() <= 0.03  # 1.7 of 255: Pillow rounds between rows and columns
    with torch.no_grad():
        want = load("default")(x).vertices[0].numpy()
    assert np.linalg.norm(found["vertices"] - want, axis=-1).mean() <= 0.001
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "default", "tore.bin"])
    assert stopped.value.code == 2 and "expected a file name" in capsys.readouterr().err
    assert tore_fast.export is exporting.export
