"""Evaluation: rows on disk, resuming after kill -9, several processes, the whole way of `tore-fast eval`. Numbers:
test_protocols.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up.sets import body_label, image, write_3dpw, write_freihand, write_tsv_set
from made_up.smpl_files import write_smpl, write_topology
from torch import nn

from tore_fast.body import load_body
from tore_fast.cli import main
from tore_fast.data.readers import evaluation_crop, open_dataset
from tore_fast.eval.evaluate import evaluate, mesh_of
from tore_fast.eval.parameter_models import CameraScoring, crop_size, is_scored
from tore_fast.eval.protocols import BodyProtocol
from tore_fast.eval.rows import RowStore
from tore_fast.geometry.skeleton import H36M17_TO_J14
from tore_fast.models.keypoints.tcformer_heads import TCFormerHMR, TCFormerHMRConfig
from tore_fast.models.smpl.camerahmr import CameraHMR, CameraHMRConfig
from tore_fast.models.smpl.hmr2 import HMR2, HMR2Config

TESTS = Path(__file__).resolve().parents[1]


def test_row_store(tmp_path):
    store = RowStore(tmp_path, {"a": 1})
    store.add(np.array([4, 0]), {"x": torch.tensor([4.0, 0.0])})
    store.flush()
    store.add(np.array([2]), {"x": torch.tensor([2.0])})  # never flushed: lost, like in a kill
    other = RowStore(tmp_path, {"a": 1}, rank=1)
    other.add(np.array([0, 1]), {"x": torch.tensor([9.0, 1.0])})
    other.flush()
    other.fail(3, "bad image")
    again = RowStore(tmp_path, {"a": 1})
    assert again.done() == {0, 1, 4} and again.failures() == {3: "bad image"}
    merged = again.merged()
    assert merged["index"].tolist() == [0, 1, 4] and merged["x"][0] in (0.0, 9.0)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match="rows of another evaluation .a was 1, is 2"):
        RowStore(tmp_path, {"a": 2})


class Oracle(nn.Module):
    """Some mesh that depends on the crop and on a weight."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(image_size=32)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("rest", load_body("free")(torch.zeros(1, 24, 3)).vertices)

    def forward(self, images):
        return SimpleNamespace(vertices=self.rest * (self.scale + 0.3 * images.mean((1, 2, 3))[:, None, None]))


@pytest.fixture(scope="module")
def threedpw(tmp_path_factory, body):
    root = tmp_path_factory.mktemp("3dpw")
    write_3dpw(root, body, people=2, frames=5, invalid=((0, 2),))
    return root


def score(root, folder, **options):
    return evaluate(
        Oracle(),
        open_dataset(root),
        BodyProtocol({"neutral": load_body("free")}),
        folder,
        image_size=32,
        batch_size=2,
        log=lambda _: None,
        **options,
    )


def numbers(metrics):
    return {k: v for k, v in metrics.items() if k not in ("images_per_s", "processes", "identity")}


def test_evaluate_and_resume(tmp_path, threedpw):
    metrics, rows = score(threedpw, tmp_path / "a")
    assert metrics["items"] == 9 and rows["index"].tolist() == list(range(9)) and metrics["failed"] == {}
    assert metrics["counts"]["accel_mm_per_frame2"] == 3  # person 0 has a gap, person 1 five frames
    assert set(metrics["per_sequence"]) == {"downtown_made_up_00_0", "downtown_made_up_00_1"}
    weighted = sum(metrics["per_sequence"][f"downtown_made_up_00_{p}"]["mpjpe_mm"] * n for p, n in ((0, 4), (1, 5))) / 9
    assert metrics["mpjpe_mm"] == pytest.approx(weighted)
    again, _ = score(threedpw, tmp_path / "a")
    assert numbers(again) == numbers(metrics) and again["images_per_s"] == 0  # nothing was computed
    workers, _ = score(threedpw, tmp_path / "w", workers=1)
    assert numbers(workers) == numbers(metrics)
    with pytest.raises(ValueError, match="another evaluation .items"):
        score(threedpw, tmp_path / "a", limit=3)


def test_bad_images_are_counted_and_tried_again(tmp_path, body):
    write_3dpw(tmp_path, body, people=1, frames=3)
    bad = tmp_path / "imageFiles" / "downtown_made_up_00" / "image_00001.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    metrics, _ = score(tmp_path, tmp_path / "rows")
    assert metrics["items"] == 2 and list(metrics["failed"]) == ["1"] and "image_00001.jpg" in metrics["failed"]["1"]
    bad.write_bytes(good)
    (tmp_path / "rows" / "failed-3.json").write_text('{"1": "left by a run of four processes"}')
    metrics, _ = score(tmp_path, tmp_path / "rows")
    assert metrics["items"] == 3 and metrics["failed"] == {}


WORKER = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from eval.test_evaluate import numbers, score
import tore_fast.eval.rows as rows
root, folder, out, kill_after = sys.argv[1:]
flush, count = rows.RowStore.flush, 0
def counted(self):
    global count
    flush(self)
    count += 1
    if count == int(kill_after):
        os.kill(os.getpid(), signal.SIGKILL)
rows.RowStore.flush = counted
init = rows.RowStore.__init__
rows.RowStore.__init__ = lambda self, *a, **k: init(self, *a, **{{**k, "flush_items": 1}})
result = score(Path(root), Path(folder))
if result:
    Path(out).write_text(json.dumps(numbers(result[0])))
"""


def launch(tmp_path, args, **environment):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER.format(tests=str(TESTS))))
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, args)], env={**os.environ, **environment}, cwd=tmp_path
    )


def test_kill_and_resume_gives_the_same_numbers(tmp_path, threedpw):
    out = tmp_path / "out.json"
    process = launch(tmp_path, [threedpw, tmp_path / "rows", out, 2])
    assert process.wait(120) == -signal.SIGKILL
    assert len(RowStore(tmp_path / "rows", json.loads((tmp_path / "rows" / "run.json").read_text())).done()) == 4
    metrics, _ = score(threedpw, tmp_path / "rows")
    whole, _ = score(threedpw, tmp_path / "whole")
    assert numbers(metrics) == numbers(whole)


def test_two_processes_weigh_items_not_processes(tmp_path, threedpw):
    """Nine items in two processes (5 + 4): the means are those of one process (up to the rounding of other batches)."""
    out = tmp_path / "out.json"
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getpid() % 2000),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    both = [launch(tmp_path, [threedpw, tmp_path / "rows", out, 0], RANK=str(rank), **shared) for rank in range(2)]
    assert [p.wait(180) for p in both] == [0, 0]
    parts = {p.name.split("-")[1] for p in (tmp_path / "rows").glob("part-*.npz")}
    assert parts == {"0", "1"}
    whole, rows = score(threedpw, tmp_path / "whole")
    got = json.loads(out.read_text())
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "accel_mm_per_frame2"):
        assert got[name] == pytest.approx(whole[name], rel=1e-6)
    # what the official evaluations print, the mean of the processes' means, would be another number
    values = rows["mpjpe_mm"]
    assert abs((values[::2].mean() + values[1::2].mean()) / 2 - whole["mpjpe_mm"]) > 1e-3


# ---- the verb
# ------------------------------------------------------------------------------------------------------------


def test_eval_of_an_official_checkpoint_on_3dpw(tmp_path, threedpw, monkeypatch, capsys):
    """Random weights in FastMETRO's official file layout -> convert -> eval on 3DPW-like files, checked by hand."""
    from tore_fast.models import create_model, load
    from tore_fast.models._checkpoint import convert

    write_topology(tmp_path / "topology")
    write_smpl(tmp_path / "topology")
    torch.manual_seed(3)
    official = create_model("fastmetro_s_r50", mesh="free").state_dict()
    torch.save({f"module.{k}": v for k, v in official.items()}, tmp_path / "FastMETRO-S-R50.bin")
    convert(tmp_path / "FastMETRO-S-R50.bin", tmp_path / "converted")
    monkeypatch.setenv("TORE_FAST_MESH_DATA", str(tmp_path / "topology"))
    command = [
        "eval",
        "--data",
        str(threedpw),
        "--checkpoint",
        str(tmp_path / "converted"),
        "--body",
        str(tmp_path / "topology"),
        "--json",
        str(tmp_path / "m.json"),
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as e:
        main(command)
    text = capsys.readouterr().out
    assert e.value.code == 0, text
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert "mpjpe_mm" in text and "9 items" in text and "downtown_made_up_00_1" in text
    assert metrics["items"] == 9 and metrics["identity"]["protocol"] == "body"
    # the same by hand: SMPL file, crop, model, numpy
    body = load_body("smpl", tmp_path / "topology", topology=tmp_path / "topology")
    model = load(tmp_path / "FastMETRO-S-R50.bin", mesh_data=tmp_path / "topology")
    regressor = body.topology.regressor("h36m17")[list(H36M17_TO_J14)].astype(np.float64)
    errors, vertices = [], []
    for record in open_dataset(threedpw):
        with torch.inference_mode():
            guess = model(torch.from_numpy(evaluation_crop(record, 224))[None]).vertices[0].double().numpy()
            mesh = (
                body(torch.from_numpy(record.pose)[None], torch.from_numpy(record.betas)[None])
                .vertices[0]
                .double()
                .numpy()
            )
        hips = lambda x: x - x[[2, 3]].mean(0)
        pelvis = lambda x: x - body.topology.regressor("h36m17")[0].astype(np.float64) @ x
        mm = lambda x, y: 1000 * np.linalg.norm(x - y, axis=1).mean()
        errors.append(mm(hips(regressor @ guess), hips(regressor @ mesh)))
        vertices.append(mm(pelvis(guess), pelvis(mesh)))
    assert metrics["mpjpe_mm"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert metrics["mpvpe_mm"] == pytest.approx(np.mean(vertices), rel=1e-4)


def test_eval_of_hands_and_tsv(tmp_path, hand, monkeypatch, capsys):
    class Hand(nn.Module):
        config = SimpleNamespace(image_size=32)

        def __init__(self):
            super().__init__()
            self.register_buffer("rest", hand(torch.zeros(1, 48)).vertices)

        def forward(self, images):
            return SimpleNamespace(vertices=self.rest.expand(len(images), -1, -1))

    import tore_fast.models

    models = {"hand": Hand, "body": Oracle}
    monkeypatch.setattr(tore_fast.models, "load", lambda name, *more, **options: models[name]())
    write_freihand(tmp_path, hand)
    with pytest.raises(SystemExit) as e:
        main(
            [
                "eval",
                "mesh",
                "--data",
                str(tmp_path),
                "--model",
                "hand",
                "--json",
                str(tmp_path / "h.json"),
                "--pred-json",
                str(tmp_path / "pred.json"),
                "--workers",
                "0",
                "--options",
                "split",
                "evaluation",
            ]
        )
    assert e.value.code == 0, capsys.readouterr()
    metrics = json.loads((tmp_path / "h.json").read_text())
    with pytest.raises(SystemExit) as e:
        main(
            [
                "eval",
                "mesh",
                "--data",
                str(tmp_path),
                "--model",
                "hand",
                "--json",
                str(tmp_path / "tta.json"),
                "--multiscale",
                "--limit",
                "1",
                "--workers",
                "0",
                "--options",
                "split",
                "evaluation",
            ]
        )
    assert e.value.code == 0, capsys.readouterr()
    averaged = json.loads((tmp_path / "tta.json").read_text())
    assert averaged["identity"]["views"] == 95 and averaged["items"] == 1
    assert metrics["counts"]["pa_mpvpe_mm"] == 3 and 0 < metrics["pa_f_15mm"] <= 1
    assert np.shape(json.loads((tmp_path / "pred.json").read_text())[1]) == (3, 778, 3)
    rng = np.random.default_rng(0)
    write_tsv_set(tmp_path / "tsv", [body_label(rng) for _ in range(3)], [image(rng)] * 3)
    (tmp_path / "tsv" / "t.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\nhw: test.hw.tsv\n")
    with pytest.raises(SystemExit) as e:
        main(
            [
                "eval",
                "mesh",
                "--data",
                str(tmp_path / "tsv" / "t.yaml"),
                "--model",
                "body",
                "--json",
                str(tmp_path / "t.json"),
                "--workers",
                "0",
            ]
        )
    assert e.value.code == 0, capsys.readouterr()
    metrics = json.loads((tmp_path / "t.json").read_text())
    assert metrics["true_joints_from_annotation"] == 3 and metrics["counts"]["mpvpe_mm"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "no such file or folder"),
        (["--data", "{3dpw}", "--options", "split", "best"], "split must be one of"),
        (["--data", "{3dpw}", "--protocol", "foot"], "--protocol"),
        (["--data", "{3dpw}", "--gendered"], "--gendered needs --body"),
        (["--data", "{3dpw}", "--body", "x.pkl"], "needs --mesh-data"),
    ],
)
def test_eval_errors_are_one_line(threedpw, arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORE_FAST_MESH_DATA", raising=False)
    with pytest.raises(SystemExit) as e:
        main(["eval", *[a.replace("{3dpw}", str(threedpw)) for a in arguments]])
    error = capsys.readouterr().err.strip()
    assert e.value.code == 2 and words in error and "\n" not in error


def test_a_set_without_labels_is_refused(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((60, 50, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "own.csv").write_text("a.png,5,5,45,55\n")
    with pytest.raises(SystemExit) as e:
        main(["eval", "--data", "own.csv", "--workers", "0"])
    said = capsys.readouterr()
    assert e.value.code == 2 and "none of its 1 items has a label" in said.err and "metric" not in said.out


def test_models_of_body_parameters(body):
    pose, betas = torch.randn(2, 24, 3) * 0.2, torch.randn(2, 10)
    from tore_fast.body.lbs import pose_matrices

    parameters = SimpleNamespace(rotations=pose_matrices(pose, 24), betas=betas)
    torch.testing.assert_close(mesh_of(parameters, body), body(pose, betas).vertices, atol=1e-5, rtol=1e-5)
    both = SimpleNamespace(vertices=torch.zeros(2, 3, 3), rotmat=parameters.rotations, betas=betas)
    assert mesh_of(both, body).abs().sum() == 0 and mesh_of(both, body, smpl_head=True).shape == (2, 6890, 3)
    with pytest.raises(ValueError, match="no vertices"):
        mesh_of(SimpleNamespace(keypoints=1), body)


TINY = dict(
    img_size=(64, 48),
    embed_dim=32,
    depth=1,
    num_heads=2,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_dim=32,
    decoder_dim=32,
)


def test_crops_of_models_of_body_parameters():
    assert crop_size(HMR2(HMR2Config(**TINY))) == (64, 48)  # square around the box widened to 3:4, sides cut
    assert crop_size(CameraHMR(CameraHMRConfig(**TINY, fov_net=False))) == 64
    assert crop_size(TCFormerHMR(TCFormerHMRConfig(embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)))) == 224
    assert not is_scored(nn.Linear(1, 1))


def test_camerahmr_hears_where_the_crop_lies(tmp_path, threedpw, body):
    model = CameraHMR(CameraHMRConfig(**TINY, fov_net=False)).eval()
    asked = []
    model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs))
    data, protocol = open_dataset(threedpw), BodyProtocol({"neutral": body})
    result, rows = evaluate(
        model, data, protocol, tmp_path / "a", image_size=64, batch_size=4, scoring=CameraScoring, log=lambda _: None
    )
    _, _, center, side, size, focal = asked[0]
    record = data[1]
    assert center[1].tolist() == pytest.approx(record.center.tolist()) and side[1] == pytest.approx(200 * record.scale)
    assert size[1].tolist() == [96, 128] and focal[1] == 120  # of the file, not estimated
    crop = torch.from_numpy(evaluation_crop(record, 64))[None]
    with torch.inference_mode():
        out = model(crop, None, center[1:2], side[1:2], size[1:2], focal[1:2])
        mine = protocol.rows(
            mesh_of(out, body), {k: torch.as_tensor(v)[None] for k, v in protocol.truth(record).items()}
        )
    assert result["items"] == 9 and rows["mpjpe_mm"][1] == pytest.approx(float(mine["mpjpe_mm"]), rel=1e-4)
    unknown = [replace(r, camera=None) for r in data]
    scoring = CameraScoring(protocol, 64, False)
    items = [scoring.item(r) for r in unknown[:2]]
    truth = {k: torch.from_numpy(np.stack([t[k] for _, t in items])) for k in items[0][1]}
    crops = torch.from_numpy(np.stack([c for c, _ in items]))
    with pytest.raises(ValueError, match="no field-of-view net"):
        scoring.rows(model, crops, truth)
    model.cam_model = nn.Module()
    model.estimate_fov = lambda image: torch.full((len(image),), 2 * np.arctan(0.5))  # focal = height
    scoring.rows(model, crops, truth)
    torch.testing.assert_close(asked[-1][-1], torch.tensor([128.0, 128.0]))


def test_command_on_a_registered_model_of_body_parameters(tmp_path, threedpw, capsys, monkeypatch):
    """The SMPL files' folder is the body's, not the model's: it used to reach the model's config."""
    monkeypatch.chdir(tmp_path)
    write_topology(tmp_path / "topology")
    write_smpl(tmp_path / "topology")
    files = ["--body", "topology", "--mesh-data", "topology"]
    with pytest.raises(SystemExit) as e:
        main(
            [
                "eval",
                "--model",
                "hmr2_vitt",
                "--data",
                str(threedpw),
                *files,
                "--limit",
                "2",
                "--workers",
                "0",
                "--json",
                "m.json",
            ]
        )
    said = capsys.readouterr()
    assert e.value.code == 0 and "random weights" in said.err, said
    assert json.loads((tmp_path / "m.json").read_text())["identity"]["image_size"] == [128, 96]
    with pytest.raises(SystemExit) as e:
        main(["eval", "mesh", "--model", "mixste_9", "--data", str(threedpw), "--limit", "1"])
    assert e.value.code == 2 and "meshes or body parameters, got" in capsys.readouterr().err
