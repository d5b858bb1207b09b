"""Training on labelled data sets: which items come, targets, published losses per family, and the verb on made-up
sets."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from made_up.sets import body_label, image, write_3dpw, write_freihand, write_tsv_set
from PIL import Image

from tore_fast.body import load_body
from tore_fast.body.lbs import pose_matrices
from tore_fast.cli import main
from tore_fast.cli._sets import source_of
from tore_fast.data.readers import open_dataset
from tore_fast.geometry.skeleton import H36M17_TO_J14, J24_TO_J14
from tore_fast.models import create_model
from tore_fast.models._outputs import MeshOutput
from tore_fast.train.mesh_labels import LabelConfig, LabelledMeshes
from tore_fast.train.stream import BLOCK, Mixture

SMALL = dict(backbone="mobilenetv3_small_050", stride=16, image_size=64)
TRANSFORMER = dict(**SMALL, layers=1, dim_1=32, dim_2=16, feedforward_1=64, feedforward_2=32, heads=4)
BERT = dict(**SMALL, hidden=(32, 16, 16), widths=(12, 8), feedforward=(48, 32, 32), layers=1, heads=2, camera_dim=10)
STILL = LabelConfig(flip=0, noise=0, rotation_deg=0, scale=0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A TSV set with everything, a csv folder with boxes only, and 3DPW."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    write_tsv_set(root / "tsv", [body_label(rng) for _ in range(6)], [image(rng) for _ in range(6)])
    (root / "tsv" / "t.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\nhw: test.hw.tsv\n")
    points = np.concatenate([rng.uniform(10, 80, (24, 2)), np.ones((24, 1))], 1).tolist()
    rows = [
        {"image": f"{i}.png", "box": [10, 20, 80, 110], "keypoints_2d": points, "keypoints_2d_set": "j24"}
        for i in range(4)
    ]
    (root / "flat").mkdir()
    for i in range(4):
        Image.fromarray(image(rng)).save(root / "flat" / f"{i}.png")
    (root / "flat" / "boxes.json").write_text(json.dumps(rows))
    write_3dpw(root / "3dpw", load_body("free"), people=1, frames=2)
    return root


def task(sets, body, model=None, config=None, weights=None):
    torch.manual_seed(0)
    model = model or create_model("fastmetro_s_r50", **TRANSFORMER)
    readers = [open_dataset(sets / "tsv" / "t.yaml"), open_dataset(sets / "flat" / "boxes.json")]
    return LabelledMeshes(model, body, readers, weights, config)


# ---- which items


def test_mixture_without_weights_is_one_epoch_of_everything():
    mix = Mixture([5, 3, 2], None, seed=1)
    for epoch in range(3):
        seen = [mix.place(n) for n in range(epoch * 10, epoch * 10 + 10)]
        assert {e for *_, e in seen} == {epoch}
        assert sorted(s[:2] for s in seen) == [(0, i) for i in range(5)] + [(1, i) for i in range(3)] + [(2, 0), (2, 1)]
    assert [mix.place(n) for n in range(10)] != [(*mix.place(n + 10)[:2], 0) for n in range(10)]


def test_mixture_keeps_weights_and_runs_through_every_set():
    sizes, weights = [700, 40, 9], [0.6, 0.3, 0.1]
    mix = Mixture(sizes, weights, seed=2)
    seen = [mix.place(n) for n in range(2 * BLOCK)]
    assert Counter(s for s, *_ in seen) == {0: 1200, 1: 600, 2: 200}
    for source, size in enumerate(sizes):
        mine = [(item, epoch) for s, item, epoch in seen if s == source]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(i for i, _ in mine[start : start + size]) == list(range(size))
            assert len({e for _, e in mine[start : start + size]}) == 1
    tiny = Mixture([10] * 3, [1, 1, 1e-9], seed=0)
    assert Counter(tiny.place(n)[0] for n in range(BLOCK))[2] == 1
    for bad in ([1, 1], [1, 0, 1], [1, float("nan"), 1]):
        with pytest.raises(ValueError, match="positive weights"):
            Mixture([1, 1, 1], bad)
    with pytest.raises(ValueError, match="needs items"):
        Mixture([3, 0], None)


def test_source_of():
    assert source_of("a/b.yaml") == ("a/b.yaml", None, {})
    assert source_of("3dpw@0.2?split=train&box=projected") == ("3dpw", 0.2, {"split": "train", "box": "projected"})
    assert source_of("me@home/x.yaml") == ("me@home/x.yaml", None, {})
    for bad in ("a@-1", "a?split", "a@0"):
        with pytest.raises(ValueError, match="--data"):
            source_of(bad)


# ---- batches and targets


def test_batches_follow_the_index_and_carry_flags(sets, body):
    t = task(sets, body)
    a, b, c = t.batch(2, 5, 0), t.batch(2, 5, 9), t.batch(3, 5, 0)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["image"], c["image"])
    whole, halves = t.batch(1, 4, 0), [t.batch(i, 2, 0) for i in (2, 3)]  # what two processes get
    assert all(torch.equal(whole[k], torch.cat([h[k] for h in halves])) for k in whole)
    epoch = t.batch(0, 10, 0)
    assert epoch["has_smpl"].sum() == epoch["has_3d"].sum() == 6 and epoch["has_2d"].sum() == 10
    assert t.items_per_epoch == 10


def test_targets_are_the_labels(sets, body):
    t = task(sets, body, config=STILL)
    batch = t.batch(0, 10, 0)
    target = t.targets(batch)
    mesh = body(batch["pose"], batch["betas"]).vertices
    pelvis = body.regress("h36m17", mesh)[:, :1]
    for level, want in zip((2, 1, 0), target.vertices):
        torch.testing.assert_close(want, (body.coarse(mesh, level) if level else mesh) - pelvis, atol=1e-5, rtol=0)
    torch.testing.assert_close(target.joints_2d, batch["joints_2d"][:, list(J24_TO_J14), :2])
    assert target.joints_3d.shape == (10, 14, 3) and torch.equal(target.has_mesh, batch["has_smpl"])


def test_a_perfect_prediction_costs_nothing_and_unlabelled_items_only_2d(sets, body):
    """Loss terms see mesh, joints and flags as they should: the truth put in gives zero where it can."""
    t = task(sets, body, config=STILL)
    batch = t.batch(0, 10, 0)
    regressor = body.topology.regressor("h36m17")[[0, *H36M17_TO_J14]]
    mesh = body(batch["pose"], batch["betas"]).vertices
    joints = (torch.from_numpy(regressor) @ mesh)[:, 1:]
    batch["joints_3d"][:, list(J24_TO_J14), :3] = joints  # labels that agree with the mesh
    batch["joints_2d"][..., 2] = 0
    perfect = MeshOutput(torch.ones(10, 3), joints, body.coarse(mesh, 2), body.coarse(mesh, 1), mesh)
    total, parts = t.loss(lambda images: perfect, batch, 0)
    assert float(parts["joints"]) < 1e-2 and float(parts["vertices"]) < 1e-3 and float(parts["projection"]) == 0
    spoilt = [v.clone() for v in perfect[1:5]]
    for v in spoilt:
        v[batch["has_smpl"] == 0] += torch.randn(3)
    again, _ = t.loss(lambda images: MeshOutput(perfect.camera, *spoilt), batch, 0)
    prior = 1e-4 * 100 * 1.0  # FastMETRO's edge-length prior sees labelled items only as well
    assert abs(float(again) - float(total)) < 1e-2 + prior


FAMILIES = {
    "fastmetro_s_r50": ("fastmetro", TRANSFORMER),
    "fastmetro_s_r50_smpl": ("fastmetro", TRANSFORMER),
    "fastmetro_tore_s_r50": ("tore_fastmetro", {**TRANSFORMER, "dim_3": 16, "feedforward_3": 32, "selector_dim": 8}),
    "metro_r50": ("metro", BERT),
    "metro_tore_r50": (
        "tore_metro",
        {**BERT, "dim_3": 16, "feedforward_3": 32, "heads_3": 4, "layers_3": 1, "selector_dim": 8},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_with_its_own_loss(name, sets, body):
    preset, config = FAMILIES[name]
    torch.manual_seed(0)
    t = task(sets, body, create_model(name, **config), LabelConfig(rest_weight=1.0))
    assert t.loss_name() == preset and (t.mask_ratio > 0) == ("metro_" in f"{name}_" and "fast" not in name)
    batch, seen = t.batch(0, 6, 0), []
    optimiser = torch.optim.AdamW(t.model.parameters(), lr=2e-3)
    t.model.train()
    for step in range(8):
        total, parts = t.loss(t.model, batch, step)
        assert all(torch.isfinite(v).all() for v in parts.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        seen.append(float(total.detach()))
    assert min(seen[-3:]) < 0.95 * seen[0], seen  # the labels are random: there is little to learn
    assert ("itp" in parts) == (preset == "tore_fastmetro") and ("smpl" in parts) == name.endswith("smpl")


def test_smpl_head_terms(sets, body):
    """True parameters cost nothing but what the labels disagree on; the rest is weighed down."""
    t = task(sets, body, create_model("fastmetro_s_r50_smpl", **TRANSFORMER), STILL)
    batch = t.batch(0, 6, 0)
    mesh = body(batch["pose"], batch["betas"]).vertices
    joints = (t.loss_of.regressor @ mesh)[:, 1:]
    batch["joints_3d"][:, list(J24_TO_J14), :3] = joints
    batch["joints_2d"][..., 2] = 0
    out = MeshOutput(
        torch.ones(6, 3),
        joints + torch.randn(6, 14, 3),
        body.coarse(mesh, 2),
        body.coarse(mesh, 1),
        mesh + 1,
        rotmat=pose_matrices(batch["pose"], 24),
        betas=batch["betas"],
    )
    total, parts = t.loss(lambda images: out, batch, 0)
    assert max(float(parts[k]) for k in parts if k.startswith("smpl")) < 1e-5 and float(parts["joints"]) > 100
    assert float(total) < 0.05
    off = out._replace(betas=batch["betas"] + 1)
    _, parts = t.loss(lambda images: off, batch, 0)
    assert float(parts["smpl"]) == pytest.approx(0.1, rel=1e-4) and float(parts["smpl_vertices"]) > 1e-4


# ---- damage and mistakes


def test_bad_images_are_left_out_with_a_warning(tmp_path, body):
    rng = np.random.default_rng(1)
    (tmp_path / "t.csv").write_text("".join(f"{i}.png,10,20,50,100\n" for i in range(4)))
    for i in range(4):
        Image.fromarray(image(rng)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    t = LabelledMeshes(create_model("fastmetro_s_r50", **TRANSFORMER), body, [open_dataset(tmp_path / "t.csv")])
    with pytest.warns(UserWarning, match=re.escape("2.png")):
        assert len(t.batch(0, 4, 0)["image"]) == 4
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="in a row cannot be read"):
        t.batch(0, 1, 0)


def test_hands_and_bodies_are_not_mixed_up(tmp_path, body, sets):
    hand = load_body("free_hand")
    write_freihand(tmp_path, hand, hands=2)
    config = {**TRANSFORMER, "dim_3": 16, "feedforward_3": 32, "selector_dim": 8}
    model = create_model("fastmetro_tore_s_r50_hand", **config)
    t = LabelledMeshes(model, hand, [open_dataset(tmp_path)])
    total, _ = t.loss(model, t.batch(0, 2, 0), 0)
    assert t.loss_name() == "tore_fastmetro_hand" and torch.isfinite(total)
    with pytest.raises(ValueError, match="data of bodies, the model is for hands"):
        LabelledMeshes(model, hand, [open_dataset(sets / "tsv" / "t.yaml")]).batch(0, 1, 0)
    with pytest.raises(ValueError, match="data of hands, the model is for bodies"):
        LabelledMeshes(create_model("fastmetro_s_r50", **TRANSFORMER), body, [open_dataset(tmp_path)]).batch(0, 1, 0)
    with pytest.raises(ValueError, match="vertices per level"):
        LabelledMeshes(model, body, [open_dataset(tmp_path)])


# ---- the verb


def call(*argv) -> int:
    with pytest.raises(SystemExit) as e:
        main(["train", "mesh", *map(str, argv)])
    return e.value.code


def test_train_eval_export_on_data_sets(sets, tmp_path, capsys, monkeypatch):
    from tore_fast.models import load

    out = tmp_path / "run"
    command = [
        "--model",
        "tore_default",
        "--data",
        f"{sets}/tsv/t.yaml@0.7",
        f"{sets}/flat/boxes.json@0.3",
        "--val",
        sets / "3dpw",
        "--labels.loss",
        "tore_fastmetro",
        "--train.out",
        out,
        "--train.epochs",
        "1.2",
        "--train.batch-size",
        "4",
        "--train.eval-every",
        "2",
        "--train.log-every",
        "1",
        "--export",
        tmp_path / "model",
    ]
    assert call(*command) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(r["step"] for r in rows) == 3 and all("itp" in r or "eval/mpjpe_mm" in r or r["loss"] > 0 for r in rows)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["metrics"]["pa_mpjpe_mm"] > 0 and config["trained_on"]["data"][0].endswith("@0.7")
    load(tmp_path / "model")
    # the exported folder is evaluated like any other: the verb gives the numbers of the last evaluation
    text = capsys.readouterr().out
    assert (
        call("--checkpoint", tmp_path / "model", *command[:5], "--train.out", tmp_path / "fine", "--train.steps", "1")
        == 0
    )
    assert re.search(r"(\d+) of \1 tensors taken: ", capsys.readouterr().out) and "mpvpe_mm" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data", "gone/h36m.yaml"], ["gone/h36m.yaml", "METRO"]),
        (["--data", "{tsv}@1", "{tsv}"], ["every set a weight"]),
        (["--data", "{tsv}", "--labels.loss", "fastmeter"], ["fastmeter", "fastmetro"]),
        (["--data", "{tsv}", "--val", "gone"], ["gone"]),
        (["--data", "{tsv}", "{plain}"], ["plain.csv", "nothing to learn"]),
        (["--data", "{tsv}", "--body", "gone/SMPL.pkl"], ["mesh"]),
        (["--body", "x.pkl"], ["mesh"]),
        (["--data", "{tsv}", "--checkpoint", "gone.pt"], ["gone.pt"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, sets, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TORE_FAST_MESH_DATA", raising=False)
    (sets / "flat" / "plain.csv").write_text("0.png,10,20,50,100\n")
    filled = [a.replace("{tsv}", f"{sets}/tsv/t.yaml").replace("{plain}", f"{sets}/flat/plain.csv") for a in arguments]
    assert call("--train.out", tmp_path / "run", *filled) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("tore-fast train mesh: ") and "\n" not in error and all(w in error for w in words), error
