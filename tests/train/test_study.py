"""studies/token_reduction/run.py: one tiny row end to end (killed and resumed), tables and plots from made-up
results."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("skimage", reason="background photographs come from scikit-image (extra: train)")
pytest.importorskip("accelerate", reason="the training loop needs accelerate (extra: train)")


@pytest.fixture(scope="module")
def study():
    from studies.token_reduction import run

    return run


@pytest.fixture(scope="module")
def tiny_body(study):
    import torch

    from studies.token_reduction.features import study_body
    from studies.token_reduction.rows import PROTOCOLS
    from tore_fast.body import load_body

    body = load_body("free")
    samples = body(0.3 * torch.randn(50, 24, 3), level=2).vertices
    return study_body(body, PROTOCOLS["tiny"].vertices, samples)


@pytest.fixture
def made_up(study, tmp_path):
    import dataclasses

    from studies.token_reduction.rows import Protocol

    def write(name, seed, pa, protocol=None, **extra):
        row = {
            "name": name,
            "seed": seed,
            "protocol": dataclasses.asdict(protocol or Protocol()),
            "head_macs": 9_000_000,
            "trunk_macs": 66_000_000,
            "train_bytes": 7 * 2**20,
            "hard_pa_mpjpe_mm": pa + 50,
            "easy_mpjpe_mm": pa + 30,
            "easy_pa_mpjpe_mm": pa,
            "easy_token_pa_mpjpe_mm": pa - 1,
            "easy_mpvpe_mm": pa + 40,
            "easy_mean_pose_pa_mpjpe_mm": 136.7,
            "easy_constant_mean_mpjpe_mm": 213.1,
            "hard_mean_pose_pa_mpjpe_mm": 203.1,
            **{f"noise{n}_pa_mpjpe": pa + i for i, n in enumerate(("0", "5", "7.5", "10"))},
            **extra,
        }
        (tmp_path / f"{name}_s{seed}.json").write_text(json.dumps(row))

    write("fastmetro_s", 0, 100.0)
    write("fastmetro_s", 1, 102.0)
    write("tore_s_gtr", 0, 110.0)
    write("tore_s_soft80", 0, 120.0, head_macs=8_000_000)
    return tmp_path, write


def test_every_pattern_of_the_default_order_names_rows(study):
    todo = study.jobs((), ())
    assert len(todo) == len(set(todo))
    assert todo[0] == ("fastmetro_s", 0)
    assert all(seed < study.ROWS[name].seeds for name, seed in todo)
    with pytest.raises(ValueError, match="no such row"):
        study.jobs(("fastmetro_x",), ())


def test_coarser_level_is_nested_and_nearly_exact(tiny_body):
    import torch

    out = tiny_body(0.1 * torch.randn(4, 24, 3), level=3).vertices
    full = tiny_body(0.1 * torch.randn(4, 24, 3))
    assert out.shape == (4, 40, 3)
    coarse = tiny_body.coarse(full.vertices, 3)
    up = torch.from_numpy(tiny_body.hierarchy.up_matrix(3).toarray()).float()
    assert (up @ coarse - full.vertices).norm(dim=-1).mean() < 0.03  # metres; the mean body is 1.7 m tall
    torch.testing.assert_close(up.sum(1), torch.ones(6890), atol=1e-4, rtol=0)


def test_table(study, made_up):
    from studies.token_reduction import report

    folder, _ = made_up
    text = report.table(folder)
    assert "| FastMETRO-S | 101.0 ± 1.4 |" in text
    assert "| TORE-S: GTR | 110.0 |" in text
    assert "| constant mean mesh | 136.7 | 213.1 |" in text
    assert "PA-MPJPE 1.41 mm" in text  # pooled over the only row with two seeds
    assert "| S, soft 0.8 | 39 | 8.00 | 120.0 | 119.0 | - | - |" in text


def test_results_of_two_protocols_are_not_mixed(study, made_up):
    from studies.token_reduction import report
    from studies.token_reduction.rows import PROTOCOLS

    folder, write = made_up
    write("mlp", 0, 105.0, protocol=PROTOCOLS["tiny"])
    with pytest.raises(ValueError, match="2 different protocols"):
        report.table(folder)
    with pytest.raises(FileNotFoundError, match="no results"):
        report.table(folder / "empty")


def test_plots(study, made_up, tmp_path):
    pytest.importorskip("matplotlib")
    folder, _ = made_up
    (folder / "timings.json").write_text(
        json.dumps({"rows": {"fastmetro_s": {"head_images_per_s": 50.0, "images_per_s": 40.0}}})
    )
    assert study.main(["plot", "--results", str(folder), "--out", str(tmp_path / "png")]) == 0
    sizes = [(tmp_path / "png" / f"study_{n}.png").stat().st_size for n in ("pareto", "tore")]
    assert all(5_000 < s < 150_000 for s in sizes)


def test_one_row_end_to_end_and_resumed(study, tmp_path, monkeypatch):
    command = [
        "run",
        "--protocol",
        "tiny",
        "--rows",
        "tore_s_soft80",
        "--seeds",
        "0",
        "--runs",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert study.main(command) == 0
    path = tmp_path / "results" / "tore_s_soft80_s0.json"
    whole = json.loads(path.read_text())
    assert whole["head_macs"] > 1e5 and whole["train_activation_bytes"] > 1e5
    assert 0 < whole["easy_pa_mpjpe_mm"] < 1000 and whole["easy_images"] == 20
    assert whole["hard_images"] == 10 and whole["noise10_pa_mpjpe"] != whole["noise0_pa_mpjpe"]

    # killed after training, before the result was written: evaluated again from the checkpoint, not trained again
    path.unlink()
    from studies.token_reduction import train

    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained again"))
    assert study.main(command) == 0
    again = json.loads(path.read_text())
    assert again["easy_pa_mpjpe_mm"] == pytest.approx(whole["easy_pa_mpjpe_mm"], abs=1e-4)

    # a finished row is read, not run; a result of another protocol is refused
    stamp = path.stat().st_mtime_ns
    assert study.main(command) == 0 and path.stat().st_mtime_ns == stamp
    changed = {**again, "protocol": {**again["protocol"], "steps": 99}}
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="another protocol"):
        study.main(command)


@pytest.mark.parametrize(
    "name",
    ["fastmetro_s", "metro", "metro_gtr", "graphormer", "tcformer", "tore_s_cluster80", "tore_s_attention80", "mlp"],
)
def test_every_family_gives_camera_joints_and_coarse_mesh(study, tiny_body, name):
    import torch

    from studies.token_reduction.rows import PROTOCOLS, ROWS, build

    p = PROTOCOLS["tiny"]
    out = build(ROWS[name], p, tiny_body)(torch.randn(2, 208, 7, 7))
    assert (
        out.camera.shape == (2, 3)
        and out.joints.shape == (2, 14, 3)
        and out.vertices_coarse.shape == (2, p.vertices, 3)
    )
    assert out.vertices is None


def parsed(words):
    """The Args that `tore-fast WORDS` runs with; every flag must exist."""
    import importlib

    from tore_fast.cli import _parse

    words = [str(w) for w in words]
    jobs = words[0] in ("train", "synth", "eval")
    name, rest = ("_".join(words[:2]), words[2:]) if jobs else (words[0], words[1:])
    return _parse(importlib.import_module(f"tore_fast.cli.{name}").Args, rest)


def test_commands_of_the_motion_study_can_be_run(tmp_path, monkeypatch):
    import argparse

    from studies.smpl_motion import run

    seen = []
    monkeypatch.setattr(run, "tore_fast", lambda *words: seen.append(words))
    args = argparse.Namespace(
        data=tmp_path,
        out=tmp_path / "out",
        host_steps=3,
        vae_steps=3,
        denoiser_steps=3,
        corrector_steps=3,
        views=2,
        tau=0.1,
    )
    for name, step in run.STEPS.items():
        if name != "table":
            step(args)
    made = [parsed(words) for words in seen]
    assert len(made) == 2 + 1 + 1 + len(run.LARGER_TAUS) + 2 + 1 + 1 + 1 + 1
    corrector = next(a for words, a in zip(seen, made) if "--regressor" in words)
    assert corrector.motion_prior == tmp_path / "out" / "vae" / "model" and corrector.loss.joints == 1


def test_commands_of_the_lifting_study_can_be_run(tmp_path):
    from studies.lifting.run import RUNS, train_command
    from tore_fast.models._overrides import config_type, parse_overrides

    for name in RUNS:
        args = parsed(train_command(name, tmp_path, tmp_path)[2:])
        fields = parse_overrides(config_type(args.model), args.set)
        assert args.export == tmp_path / name / "export" and fields["channels"] == 64
