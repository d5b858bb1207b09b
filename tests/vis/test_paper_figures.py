"""Figures of the papers: kept frames, groups, poses, noise, features of tokens, key points, means of attention maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.made_up.command import command
from tore_fast.cli.viz_attention import _means
from tore_fast.layers._tokens import Tokens
from tore_fast.vis.frames import group_panel, kept_panel, pose_panel
from tore_fast.vis.keypoints import bones, draw_keypoints
from tore_fast.vis.tokens import feature_image


def test_kept_frames_and_how_often():
    kept = np.zeros((4, 9), bool)
    kept[:, 2] = True
    kept[:2, 5] = True
    page = kept_panel(kept, (10, 4))
    dark = (page == (38, 70, 160)).all(-1)
    rows, bars = dark[18:34], dark[52:142]
    assert rows[:, 56 + 25].all() and rows[:8, 56 + 55].all() and not rows[8:, 56 + 55].any()
    assert bars[:, 56 + 25].sum() == pytest.approx(90, abs=1) and bars[:, 56 + 55].sum() == pytest.approx(45, abs=1)
    assert not dark[:, 56 + 5].any()


def test_groups_have_their_own_colours_and_poses_their_marks():
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(9, 17, 3))
    group = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    page = group_panel(poses, group, np.array([1, 4, 7]), 90)
    strip = page[30]
    assert len({tuple(strip[x]) for x in (10, 40, 70)}) == 1 and len({tuple(strip[x]) for x in (40, 130, 220)}) == 3
    panel = pose_panel(poses, poses, np.array([4]), [0, 4], 64)
    mark = (panel == (210, 120, 0)).all(-1)
    assert mark[:, 64:].any() and not mark[:, :64].any()


def test_features_are_those_of_the_token_of_a_cell():
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]])
    tokens = Tokens(x, (2, 2), (4, 4), owner, torch.ones(1, 16))
    seen = feature_image(tokens, (16, 16))
    assert seen.shape == (16, 16, 3) and len(np.unique(seen.reshape(-1, 3), axis=0)) == 4
    assert (seen[:8, :8] == seen[0, 0]).all() and seen.min() == 0 and seen.max() == 255


def test_points_and_bones_are_where_they_belong():
    assert len(bones(17)) == 19 and len(bones(133)) == 25 + 40 and bones(98) == []
    assert {a for a, *_ in bones(133)} | {b for _, b, _ in bones(133)} <= set(range(133))
    points = np.full((17, 2), 50.0)
    points[5], points[7] = (10, 10), (10, 90)
    scores = np.zeros(17)
    scores[[5, 7]] = 1.0
    out = draw_keypoints(np.zeros((100, 100, 3), np.uint8), [points], [scores])
    assert out[50, 10].any() and not out[50, 50].any()


def test_mean_over_layers_and_transformers():
    rng = np.random.default_rng(0)
    maps = {"cross_1": rng.random((2, 3, 4)), "cross_2": rng.random((2, 3, 4)), "encoder_3": rng.random((3, 5, 5))}
    got = _means(maps)
    np.testing.assert_allclose(got["encoder_3"][0], maps["encoder_3"].mean(0))
    np.testing.assert_allclose(got["cross"][0], (maps["cross_1"].sum(0) + maps["cross_2"].sum(0)) / 4)


def call(capsys, *argv) -> tuple[int, str, str]:
    code = command(*argv)
    return code, *capsys.readouterr()


def test_commands(tmp_path, capsys):
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)).save(image)
    small = ("--set", "embed_dims", "8,8,16,16", "num_heads", "1,1,2,2", "depths", "1,1,1,1")
    code, _, err = call(capsys, "viz", "tokens", image, "--features", "--size", "64", "--out", tmp_path / "o", *small)
    assert code == 0 and (tmp_path / "o" / "a_features.png").is_file(), err
    code, _, err = call(capsys, "viz", "frames", "--data", tmp_path, "--model", "mixste_27")
    assert code == 2 and "not a folder with trained weights" in err
    code, _, err = call(capsys, "viz", "noise", image, "--model", "fastmetro_s_eb0")
    assert code == 2 and "no shape regressor" in err
    code, _, err = call(capsys, "viz", "keypoints", image, "--model", "body_landmarks")
    assert code == 2 and "no heat maps of key points" in err


def test_stages_side_by_side(tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{n}.npz" for n in ("base", "merged")]
    for f in files:
        np.savez(f, joints_3d=rng.normal(size=(6, 24, 3)).astype(np.float32))
    code, _, err = call(capsys, "viz", "stages", *files, "--frames", "0", "5", "--out", tmp_path / "o")
    assert code == 0, err
    page = np.asarray(Image.open(tmp_path / "o" / "stages.png"))
    assert page.shape[1] > 400 and (page[:, :200] < 200).any() and (page[:, 210:] < 200).any()
    code, _, err = call(capsys, "viz", "stages", *files, "--frames", "9")
    assert code == 2 and "--frames: expected some of 0..5" in err
