"""`tore-fast eval` for key points and classes: COCO-WholeBody, COCO, WFLW and class folders made on the spot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tore_fast.cli import main
from tore_fast.data import coco_body, wflw, wholebody
from tore_fast.eval import task_scoring
from tore_fast.eval.evaluate import evaluate_rows
from tore_fast.eval.keypoint_metrics import LandmarkMetric, OksMetric, WholeBodyMetric
from tore_fast.models import create_model, save

TINY = dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1))


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main(["eval", *map(str, arguments)])
    return end.value.code


def triples(rng, count, visible=2):
    points = np.concatenate([rng.uniform(20, 140, (count, 2)).round(2), np.full((count, 1), visible)], 1)
    return points.ravel().tolist()


@pytest.fixture
def coco(tmp_path):
    """Three images with four people, one crowd and one person without points; boxes of a detector near the four."""
    rng = np.random.default_rng(0)
    annotations = []
    for n, image in enumerate((1, 1, 2, 3, 3, 2)):
        person = {
            "id": 10 + n,
            "image_id": image,
            "category_id": 1,
            "iscrowd": int(n == 4),
            "bbox": [10.0 + n, 12.0, 140.0, 140.0],
            "area": 15000.0,
            "keypoints": triples(rng, 17),
            "foot_kpts": triples(rng, 6),
            "face_kpts": triples(rng, 68),
            "lefthand_kpts": triples(rng, 21),
            "righthand_kpts": triples(rng, 21),
        }
        if n == 5:
            person |= {f: [0.0] * len(person[f]) for f in wholebody.FIELDS}
        annotations.append(person)
    images = [{"id": i, "file_name": f"{i:012}.png"} for i in (1, 2, 3)]
    for image in images:
        Image.fromarray(rng.integers(0, 255, (160, 170, 3), dtype=np.uint8)).save(tmp_path / image["file_name"])
    (tmp_path / "ann.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1}]})
    )
    boxes = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5 + 0.1 * i}
        for i, a in enumerate(annotations)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


class Teller(torch.nn.Module):
    """Gives every item the heat-maps a data set would ask for, whatever the order of the batches: items are recognised
    by
    the sum of their pixels."""

    def __init__(self, shown, told):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.table = {round(float(s["image"].double().sum()), 3): t["target"] for s, t in zip(shown, told)}

    def forward(self, image):
        return torch.stack([self.table[round(float(x.double().sum()), 3)] for x in image])


def test_wholebody_counts_crowds_and_unlabelled_people_as_ignored(coco, tmp_path):
    """Perfect points on detector boxes score 1, though two of the six boxes are a crowd and a person without points."""
    found = wholebody.read_wholebody(coco / "ann.json", coco, coco / "boxes.json")
    everybody = wholebody.read_wholebody(coco / "ann.json", coco, everybody=True)
    assert len(found) == 6 and len(everybody) == 6 and [p.ignore for p in everybody].count(True) == 1
    assert len(wholebody.read_wholebody(coco / "ann.json", coco)) == 4
    shown = wholebody.wholebody_dataset(found, (256, 192))
    told = wholebody.wholebody_dataset(
        [f._replace(points=np.where(e.points[..., 2:] > 0, e.points, (50, 50, 2))) for f, e in zip(found, everybody)],
        (256, 192),
    )
    scoring = task_scoring.KeypointScoring(
        "wholebody", shown, WholeBodyMetric(everybody), flip_test=False, refine="none"
    )
    metrics, rows = evaluate_rows(
        Teller(shown, told),
        task_scoring.ListedItems("wholebody", shown),
        scoring,
        tmp_path / "w",
        batch_size=4,
        log=lambda _: None,
    )
    assert rows["points"].shape == (6, 133, 2)
    assert metrics["body_AP"] == pytest.approx(1.0) and metrics["foot_AP"] == pytest.approx(1.0)
    assert metrics["whole_AP"] >= 0.89  # sigmas of the face are smaller than a pixel of the map
    without = WholeBodyMetric([p for p in everybody if not p.ignore and (p.points[:, 2] > 0).any()])
    missed = without(found, rows["points"].astype(np.float64), rows["scores"].astype(np.float64))
    assert missed["body_AP"] < 0.95  # the two would be false alarms


@pytest.mark.parametrize("form", ["wholebody", "coco"])
def test_command_on_coco_files(coco, tmp_path, capsys, form):
    name, count, field = {
        "wholebody": ("tcformer_light_wholebody", 133, "whole_AP"),
        "coco": ("tcformer_light_wholebody", 17, "AP"),
    }[form]
    torch.manual_seed(0)
    save(create_model(name, num_keypoints=count, neck_channels=32, **TINY), tmp_path / "model", name)
    common = [
        "--data",
        coco / "ann.json",
        "--images",
        coco,
        "--checkpoint",
        tmp_path / "model",
        "--json",
        tmp_path / "out.json",
        "--boxes",
        coco / "boxes.json",
        "--image-size",
        64,
        64,
        "--workers",
        0,
    ]
    assert run(*common, "--pred-json", tmp_path / "results.json") == 0
    out = capsys.readouterr().out
    assert field in out and f"6 items of {coco / 'ann.json'}, {form} protocol" in out
    metrics = json.loads((tmp_path / "out.json").read_text())
    assert metrics["items"] == 6 and 0 <= metrics[field] <= 1 and metrics["identity"]["flip_test"] is True
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results[0]["keypoints"]) == 51 and ("face_kpts" in results[0]) == (form == "wholebody")
    # again: nothing is computed, the numbers stay; other options are another evaluation
    assert run(*common) == 0
    assert "6 of 6 items are there already" in capsys.readouterr().out
    again = json.loads((tmp_path / "out.json").read_text())
    assert again[field] == metrics[field] and again["images_per_s"] == 0
    assert run(*common, "--no-flip-test") == 2
    assert "another evaluation (flip_test was True, is False)" in capsys.readouterr().err


def test_a_killed_run_goes_on(coco, tmp_path):
    """Rows of a first run that broke after two items are kept; the second computes the rest, the result is the same."""
    people = coco_body.read_coco_body(coco / "ann.json", coco)
    torch.manual_seed(0)
    model = create_model("tcformer_light_wholebody", num_keypoints=17, neck_channels=32, **TINY)

    class Breaks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, image):
            self.calls += 1
            if self.calls == 4:  # two passes an item
                raise KeyboardInterrupt
            return self.model(image)

    def scores(module, folder):
        data = coco_body.coco_body_dataset(people, (64, 64))
        scoring = task_scoring.KeypointScoring("coco", data, OksMetric())
        return evaluate_rows(
            module, task_scoring.ListedItems("coco", data), scoring, folder, batch_size=1, log=lambda _: None
        )

    whole, rows = scores(model, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        from tore_fast.eval import rows as row_module

        init = row_module.RowStore.__init__
        patch.setattr(row_module.RowStore, "__init__", lambda self, *a, **k: init(self, *a, **{**k, "flush_items": 1}))
        patch.setattr("tore_fast.eval.evaluate.weights_hash", lambda module: "same")
        with pytest.raises(KeyboardInterrupt):
            scores(Breaks(), tmp_path / "killed")
        rest = Breaks()
        rest.calls = -100
        again, rows_again = scores(rest, tmp_path / "killed")
    assert rest.calls == -100 + 2 * (len(people) - 1)
    np.testing.assert_array_equal(rows_again["points"], rows["points"])
    assert again["AP"] == whole["AP"]


@pytest.fixture
def faces(tmp_path):
    rng = np.random.default_rng(1)
    lines = []
    for n, attributes in enumerate(("1 0 0 0 0 0", "0 0 0 0 0 1", "0 1 0 0 0 1")):
        Image.fromarray(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        points = rng.uniform(20, 100, (98, 2))
        points[60], points[72] = (30, 50), (80, 50)
        lines.append(" ".join(f"{v:.3f}" for v in points.ravel()) + f" 15 15 105 105 {attributes} {n}.png")
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_wflw_command(faces, tmp_path, capsys):
    torch.manual_seed(0)
    save(create_model("tcformer_light_wflw", neck_channels=32, **TINY), tmp_path / "model", "tcformer_light_wflw")
    common = ["--data", faces / "list.txt", "--checkpoint", tmp_path / "model", "--image-size", 64, 64, "--workers", 0]
    assert run(*common, "--json", tmp_path / "all.json") == 0
    metrics = json.loads((tmp_path / "all.json").read_text())
    assert metrics["counts"] == dict(zip((f"nme_{s}" for s in wflw.SUBSETS), (1, 1, 0, 0, 0, 2)))
    assert "nme_blur" in capsys.readouterr().out and metrics["nme"] > 0.1
    assert metrics["nme_makeup"] is None, "no such face: null, since NaN is no JSON"
    assert run(*common, "--json", tmp_path / "two.json", "--limit", 2) == 0
    assert json.loads((tmp_path / "two.json").read_text())["counts"]["nme_blur"] == 1
    (faces / "1.png").write_bytes(b"no image")
    capsys.readouterr()
    assert run(*common, "--json", tmp_path / "broken.json") == 1  # one item failed, the others count
    assert ": item 1: " in capsys.readouterr().err
    assert json.loads((tmp_path / "broken.json").read_text())["items"] == 2


def test_two_evaluations_without_a_folder_do_not_meet(faces, tmp_path, capsys, monkeypatch):
    """Rows lie in a folder named after data and model; crops default to the size the model was trained on."""
    monkeypatch.chdir(tmp_path)
    model = create_model("tcformer_light_wflw", neck_channels=32, **TINY)
    for name, size in (("one", [64, 64]), ("two", [32, 64])):
        save(model, tmp_path / name, "tcformer_light_wflw", trained_on={"image_size": size})
        assert run("--data", faces / "list.txt", "--checkpoint", tmp_path / name, "--workers", 0, "--limit", 1) == 0
        kept = json.loads((tmp_path / ".tore_fast_eval" / f"list-{name}" / "run.json").read_text())
        assert kept["image_size"] == size


def test_attributes_stay_with_their_faces(faces):
    """A face that could not be read takes its attributes with it."""
    instances, attributes = wflw.read_wflw(faces / "list.txt", faces)
    data = wflw.wflw_dataset(instances)
    scoring = task_scoring.KeypointScoring("wflw", data, LandmarkMetric(attributes, wflw.SUBSETS))
    truth = np.stack([i.points[:, :2] for i in instances])
    rows = {
        "index": np.array([0, 2]),
        "points": truth[[0, 2]] + np.array([[[0.0, 0]], [[5.0, 0]]]),
        "scores": np.ones((2, 98)),
    }
    metrics = scoring.summary(rows, ["", ""], [-1, -1])
    assert metrics["nme_pose"] == pytest.approx(0, abs=1e-6) and metrics["nme_blur"] == pytest.approx(0.1, rel=1e-5)


def test_imagenet_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "eel")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 85 + 85 * label, (50, 60, 3), dtype=np.uint8)).save(
                tmp_path / "val" / name / f"{i}.png"
            )
    torch.manual_seed(0)
    model = create_model("tcformer_light", num_classes=3, **TINY).eval()
    save(model, tmp_path / "model", "tcformer_light")
    common = ["--data", tmp_path / "val", "--image-size", 64, "--workers", 0]
    assert run(*common, "--checkpoint", tmp_path / "model", "--json", tmp_path / "out.json") == 0
    metrics = json.loads((tmp_path / "out.json").read_text())
    from tore_fast.data.imagenet_folder import imagenet_folder

    with torch.no_grad():
        right = [int(model(x[None]).argmax()) == y for x, y in imagenet_folder(tmp_path / "val", False, 64)]
    assert metrics["top1_percent"] == pytest.approx(100 * np.mean(right)) and metrics["top5_percent"] == 100
    assert "top1_percent" in capsys.readouterr().out
    # a stored official-layout file does as well, and a model of other classes is refused
    torch.save({"model": create_model("tcformer_light", num_classes=5).state_dict()}, tmp_path / "official.pth")
    assert run("classify", *common, "--checkpoint", tmp_path / "official.pth", "--work", tmp_path / "w") == 2
    assert "the model has 5 classes, the data 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "tcformer_light_wholebody", "--images", "nowhere"], "--images: nowhere is not a folder"),
        ([], "--model or --checkpoint"),
        (["--model", "tcformer_light_hmr"], "not made for keypoints"),
        (["--model", "ppt_s", "--format", "wholebody"], "has 133 key points, the model 17"),
        (["--checkpoint", "missing.pth"], "missing.pth"),
    ],
)
def test_bad_options_are_one_line(coco, capsys, arguments, words):
    assert run("keypoints", "--data", coco / "ann.json", *arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("tore-fast eval keypoints: ") and words in err


def test_synthetic_people(tmp_path, capsys):
    torch.manual_seed(0)
    save(
        create_model("tcformer_light_wholebody", num_keypoints=14, neck_channels=32, **TINY),
        tmp_path / "m",
        "tcformer_light_wholebody",
    )
    assert (
        run(
            "--data",
            "synth",
            "--checkpoint",
            tmp_path / "m",
            "--image-size",
            64,
            64,
            "--limit",
            32,
            "--json",
            tmp_path / "s.json",
        )
        == 0
    )
    metrics = json.loads((tmp_path / "s.json").read_text())
    assert metrics["error_px"] > metrics["mean_point_error_px"] > 0  # random weights know nothing
    assert "mean_point_error_px" in capsys.readouterr().out
