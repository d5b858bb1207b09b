"""Natural order: numbers by value, folders first, and every folder of images, frames or key points in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tore_fast.data.keypoints import read_keypoints
from tore_fast.io.image import find_images
from tore_fast.io.natural import natural_sorted
from tore_fast.io.video import open_video


def test_numbers_by_value():
    names = ["b", "a10b2", "a2b10", "a2b9", "10", "9", "a", "", "a02b9", "x-1.5", "x-1.10"]
    want = ["", "9", "10", "a", "a02b9", "a2b9", "a2b10", "a10b2", "b", "x-1.5", "x-1.10"]
    assert natural_sorted(reversed(names)) == want
    paths = [Path("c10/f1"), Path("c2/f10"), Path("c2/f9")]
    assert natural_sorted(paths) == [Path("c2/f9"), Path("c2/f10"), Path("c10/f1")]


def test_folders_are_read_in_it(tmp_path):
    for i in (1, 2, 10):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"frame{i}.png")
    for source in (tmp_path, f"{tmp_path}/frame*.png"):
        assert [p.stem for p in find_images([source])[0]] == ["frame1", "frame2", "frame10"]
    assert [int(f[0, 0, 0]) for _, f in open_video(tmp_path).frames()] == [1, 2, 10]
    poses = tmp_path / "poses"
    poses.mkdir()
    for i in (1, 2, 10):
        people = [{"pose_keypoints_2d": [v for k in range(25) for v in (float(i), 9.0 * k, 0.9)]}]
        (poses / f"clip_{i}_keypoints.json").write_text(json.dumps({"people": people}))
    clip = read_keypoints(poses)
    seen = clip.keypoints[:, 0, 2] > 0
    assert clip.frames[seen].tolist() == clip.keypoints[seen, 0, 0].tolist() == [1, 2, 10]  # 3 to 9: filled in
