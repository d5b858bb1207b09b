"""Files of key points as detectors and people write them: each form gives the same clip, each trap the right value or a
line."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from made_up.figures import COCO_NAMES, walker

from tore_fast.data.keypoints import COUNTS, KeypointError, fill_missing, read_keypoints, read_people, to_h36m

POINTS = walker(6)
CLEAN = to_h36m(POINTS, "coco")
FLAT = [p.ravel().tolist() for p in POINTS]


def put(folder, name, value):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def instance(p, **more):
    return {"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist(), "bbox": [[0, 0, 9, 9]], **more}


def yolo(p, **more):
    x, y, c = p.T.tolist()
    return {"name": "person", "confidence": 0.9, "keypoints": {"x": x, "y": y, "visible": c}, **more}


FORMS = {
    "AlphaPose": [{"image_id": f"{i}.jpg", "keypoints": k, "idx": 1, "score": 2.9} for i, k in enumerate(FLAT)],
    "COCO annotations": {
        "images": [{"id": 7 + i, "file_name": f"f{i}.jpg", "width": 1280, "height": 720} for i in range(6)],
        "annotations": [{"image_id": 7 + i, "keypoints": k, "category_id": 1} for i, k in reversed([*enumerate(FLAT)])],
    },
    "MMPose inferencer": [{"frame_id": i, "instances": [instance(p)]} for i, p in enumerate(POINTS)],
    "MMPose demo": {
        "meta_info": {"dataset_name": "coco"},
        "instance_info": [{"frame_id": i, "instances": [instance(p, track_id=3)]} for i, p in enumerate(POINTS)],
    },
    "MMPose 0.x": [
        {"preds": [p.tolist()], "boxes": [[1] * 6], "image_paths": [f"{i}.jpg"], "bbox_ids": [i]}
        for i, p in enumerate(POINTS)
    ],
    "MMPose 0.x batches": [
        {
            "preds": POINTS[i : i + 3].tolist(),
            "image_paths": [f"{k}.jpg" for k in range(i, i + 3)],
            "bbox_ids": [7, 8, 9],
        }
        for i in (0, 3)
    ],
    "MMPose 0.x video": [{"preds": [p.tolist()], "bbox_ids": [0]} for p in POINTS],
    "Ultralytics": [yolo(p) for p in POINTS],
    "Ultralytics frames": [[yolo(p, track_id=4)] for p in POINTS],
    "Ultralytics texts": [json.dumps([yolo(p)]) for p in POINTS],
    "named points": {"keypoints": [[{"x": x, "y": y, "score": c} for x, y, c in p.tolist()] for p in POINTS]},
    "plain list": POINTS.tolist(),
    "texts of numbers": {"keypoints": [[[str(v) for v in q] for q in p] for p in POINTS.tolist()]},
}


@pytest.mark.parametrize("form", FORMS)
def test_json_forms(tmp_path, form):
    clip = read_keypoints(put(tmp_path, "a.json", FORMS[form]))
    assert clip.order == "coco" and clip.frames.tolist() == [0, 1, 2, 3, 4, 5] and clip.filled == 0
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-5)


def csv_text(sign=",", decimal=".", header=None, points=POINTS, first=None):
    rows = [[*([] if first is None else [str(first + i)]), *map(str, p.ravel().tolist())] for i, p in enumerate(points)]
    lines = [sign.join(v.replace(".", decimal) for v in row) for row in rows]
    return "\n".join([*([sign.join(header)] if header else []), *lines]) + "\n"


NAMED = [f"{n}_{c}" for n in COCO_NAMES for c in ("x", "y", "score")]
TABLES = {
    "bare": csv_text(),
    "semicolons and decimal commas": csv_text(";", ","),
    "tabs": csv_text("\t"),
    "byte order mark": "\ufeff" + csv_text(header=[f"{c}{j}" for j in range(17) for c in "xyc"]),
    "names": csv_text(header=NAMED),
    "names, frame": csv_text(header=["frame", *NAMED], first=0),
    "names the other way": csv_text(header=[f"{c}_{n}" for n in COCO_NAMES for c in ("x", "y", "conf")]),
    "numbered": csv_text(header=[f"kp{j}_{c}" for j in range(17) for c in ("x", "y", "confidence")]),
    "frame in front": csv_text(first=0),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables(tmp_path, form):
    clip = read_keypoints(put(tmp_path, "a.csv", TABLES[form]))
    assert clip.order == "coco" and clip.frames.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-5)


def test_columns_by_name_in_any_order(tmp_path):
    turned = [*range(16, -1, -1)]
    names = [f"{COCO_NAMES[j]}_{c}" for j in turned for c in ("x", "y", "likelihood")]
    clip = read_keypoints(put(tmp_path, "a.csv", csv_text(header=names, points=POINTS[:, turned])))
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-5)


def object_array(values):
    out = np.empty(len(values), object)
    for i, v in enumerate(values):
        out[i] = v
    return out


def test_arrays(tmp_path):
    """VideoPose3D's and its detectron2 script's object arrays (nothing of them is executed), Ultralytics' .npy."""
    xy = POINTS[..., :2].astype(np.float32)
    meta = {"layout_name": "coco", "num_joints": 17, "video_metadata": {"clip.mp4": {"w": 1280, "h": 720}}}
    np.savez(tmp_path / "custom.npz", positions_2d={"clip.mp4": {"custom": [xy]}}, metadata=meta)
    keypoints = object_array([[[], np.concatenate([p[:, :2].T, p[:, 2:].T, p[:, 2:].T])[None]] for p in POINTS])
    boxes = object_array([[[], np.array([[1, 2, 3, 4, 0.9]])] for _ in POINTS])
    np.savez(tmp_path / "d2.npz", keypoints=keypoints, boxes=boxes, metadata={"w": 1280, "h": 720})
    np.save(tmp_path / "yolo.npy", POINTS)
    np.save(tmp_path / "people.npy", np.stack([POINTS, walker(6, 200)], 1))
    for name in ("custom.npz", "d2.npz", "yolo.npy", "people.npy"):
        clip = read_keypoints(tmp_path / name)
        assert clip.order == "coco", name
        np.testing.assert_allclose(clip.keypoints[..., :2], CLEAN[..., :2], rtol=1e-5, err_msg=name)
        assert (clip.width, clip.height) == ((1280, 720) if name.endswith("npz") else (None, None))
    assert len(read_people(tmp_path / "people.npy")) == 2


def test_mediapipe_wholebody_smpl(tmp_path):
    """Joints with the same names get the same places."""
    at = dict(zip(COCO_NAMES, POINTS.swapaxes(0, 1)))
    from tore_fast.data.keypoints.orders import SKELETONS, joint_name

    def of(order):
        rows = {joint_name(k): v for k, v in at.items()}
        return np.stack([rows.get(joint_name(n), np.ones((6, 3))) for n in SKELETONS[order]], 1)

    size = [1280, 720, 1]
    frames = [
        {"pose_landmarks": [{"x": x, "y": y, "z": 0.1, "visibility": c} for x, y, c in (p / size).tolist()]}
        for p in of("mediapipe")
    ]
    clip = read_keypoints(put(tmp_path, "mp.json", frames), width=1280, height=720)
    assert clip.order == "mediapipe" and any("scaled to 1280 x 720" in n for n in clip.notes)
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-4)
    whole = [{"image_id": i, "keypoints": p.ravel().tolist()} for i, p in enumerate(of("wholebody"))]
    clip = read_keypoints(put(tmp_path, "wb.json", whole))
    assert clip.order == "wholebody"
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-5)
    clip = read_keypoints(put(tmp_path, "s.json", of("smpl").tolist()))
    limbs = [j for j in range(17) if j not in (0, 7, 9, 10)]  # not the joints that COCO lacks
    assert clip.order == "smpl"
    np.testing.assert_allclose(clip.keypoints[:, limbs], CLEAN[:, limbs], rtol=1e-5)
    assert COUNTS["mediapipe"] == 33 and COUNTS["wholebody"] == 133


def test_joints_that_were_not_seen_are_filled(tmp_path):
    """NaN, null, a blank, exactly (0, 0): none of them is a place in the image, whatever the confidence beside it."""
    for value in (
        ["nan", "nan", 0.9],
        [None, None, 0.9],
        [None, None, None],
        [0, 0, 0.3],
        [0.0, 0.0, 1],
        [1e30, 5, 0.9],
    ):
        rows = POINTS.tolist()
        rows[3][9] = [float("nan") if v == "nan" else v for v in value]
        for data in ({"keypoints": rows}, [{"image_id": i, "keypoints": sum(p, [])} for i, p in enumerate(rows)]):
            clip = read_keypoints(put(tmp_path, "a.json", data), "coco")
            want = CLEAN.copy()
            want[3, 13] = (want[2, 13] + want[4, 13]) / 2
            np.testing.assert_allclose(clip.keypoints[..., :2], want[..., :2], rtol=1e-5, err_msg=str(value))
            assert clip.filled == 1 and clip.keypoints[3, 13, 2] == 0
            assert any("1 joint positions were not seen" in n for n in clip.notes)
    cells = csv_text().splitlines()
    row = cells[3].split(",")
    row[27:29] = ["", ""]
    cells[3] = ",".join(row)
    clip = read_keypoints(put(tmp_path, "a.csv", "\n".join(cells)))
    assert clip.filled == 1
    np.testing.assert_allclose(clip.keypoints[3, 13, :2], (CLEAN[2, 13, :2] + CLEAN[4, 13, :2]) / 2, rtol=1e-5)


def test_frames_without_anybody(tmp_path):
    rows = POINTS.tolist()
    rows[2] = None
    clip = read_keypoints(put(tmp_path, "a.json", {"keypoints": rows}))
    assert clip.frames.tolist() == [0, 1, 2, 3, 4, 5] and clip.filled == 17
    np.testing.assert_allclose(clip.keypoints[2, :, :2], (CLEAN[1] + CLEAN[3])[:, :2] / 2, rtol=1e-5)
    frames = [
        {"people": [{"pose_keypoints_2d": FLAT[0]}]},
        {"people": []},
        {"people": [{"pose_keypoints_2d": FLAT[2]}]},
    ]
    assert read_keypoints(put(tmp_path, "b.json", frames), "coco").filled == 17


def test_frame_numbers_are_kept(tmp_path):
    rows = [{"image_id": f"{30 + i}.jpg", "keypoints": k, "idx": 1} for i, k in enumerate(FLAT)]
    assert read_keypoints(put(tmp_path, "late.json", rows)).frames.tolist() == [30, 31, 32, 33, 34, 35]
    every5 = [{"image_id": f"cam2_{5 * i}.png", "keypoints": k} for i, k in enumerate(FLAT)]
    clip = read_keypoints(put(tmp_path, "every5.json", every5[::-1]))
    assert clip.frames.tolist() == [*range(26)]  # time runs as in the video
    np.testing.assert_allclose(clip.keypoints[::5], CLEAN, rtol=1e-5)
    ids = [{"image_id": 10**9 + 1000 * i, "keypoints": k} for i, k in enumerate(FLAT)]  # ids of images, no frames
    clip = read_keypoints(put(tmp_path, "ids.json", ids))
    assert len(clip.frames) == 6 and any("long gaps" in n for n in clip.notes)
    other = [{"image_id": f"{i}.jpg", "keypoints": FLAT[0], "idx": 2} for i in range(3)]
    assert read_keypoints(put(tmp_path, "two.json", other + rows), person=1).frames[0] == 30


def test_track_ids_of_every_kind(tmp_path):
    other = [p.ravel().tolist() for p in walker(3, 200)]
    for kind in (str, int, float, lambda t: [t], lambda t: f"id-{t}"):
        rows = [{"image_id": i, "keypoints": k, "track_id": kind(1)} for i, k in enumerate(FLAT)]
        rows += [{"image_id": i, "keypoints": k, "track_id": kind(2)} for i, k in enumerate(other)]
        path = put(tmp_path, "a.json", rows)
        name = "id-2" if kind(2) == "id-2" else 2
        assert read_keypoints(path, person=name).keypoints[0, 0, 0] < 300
        assert read_keypoints(path, person=str(name)).frames.tolist() == [0, 1, 2]
        assert any("2 people" in n for n in read_keypoints(path).notes)


def test_people_without_ids_are_tracked(tmp_path):
    """Two people whose order in the file changes from frame to frame."""
    left, right = walker(8, 300), walker(8, 900)
    frames = [
        {"frame_id": i, "instances": [instance(p) for p in ((a, b) if i % 2 else (b, a))]}
        for i, (a, b) in enumerate(zip(left, right))
    ]
    clips = read_people(put(tmp_path, "a.json", frames))
    assert sorted(round(c.keypoints[:, 0, 0].mean()) for c in clips) == [300, 900]
    assert all(np.ptp(c.keypoints[:, 0, 0]) < 20 and len(c.frames) == 8 for c in clips)


def test_shares_of_the_image_are_never_pixels(tmp_path):
    shares = (POINTS / [1280, 720, 1]).tolist()
    data = {"keypoints": shares, "width": 1280, "height": 720}
    np.testing.assert_allclose(read_keypoints(put(tmp_path, "a.json", data)).keypoints, CLEAN, rtol=1e-4)
    with pytest.raises(KeypointError, match="shares of the image; its size is needed"):
        read_keypoints(put(tmp_path, "b.json", {"keypoints": shares}))
    centred = ((POINTS - [640, 360, 0]) / [640, 640, 1]).tolist()
    with pytest.raises(KeypointError, match="are no pixels"):
        read_keypoints(put(tmp_path, "c.json", {"keypoints": centred}), width=1280, height=720)


def test_joints_that_are_never_seen(tmp_path):
    """A person without legs in the image (a desk) is lifted all the same, and it is said."""
    points = POINTS.copy()
    points[:, 13:] = 0
    clip = read_keypoints(put(tmp_path, "a.json", {"keypoints": points.tolist()}), "coco")
    assert clip.assumed == ("R_Knee", "R_Ankle", "L_Knee", "L_Ankle") and clip.filled == 0
    seen = [0, 1, 4, *range(7, 17)]
    np.testing.assert_allclose(clip.keypoints[:, seen], CLEAN[:, seen], rtol=1e-5)
    torso = np.linalg.norm(CLEAN[:, 8, :2] - CLEAN[:, 0, :2], axis=-1).max()
    assert np.linalg.norm(clip.keypoints[..., :2] - CLEAN[..., :2], axis=-1).max() < 0.6 * torso
    points[:, 2:] = 0
    with pytest.raises(KeypointError, match="only . of the 17 joints are ever seen"):
        read_keypoints(put(tmp_path, "b.json", {"keypoints": points.tolist()}), "coco")
    for keep in ([11, 12, 13], [0, 8, 11], [1, 2, 3]):
        some = np.zeros((3, 17, 3), np.float32)
        some[:, keep] = CLEAN[:3, keep]
        full, filled, assumed = fill_missing(some)
        assert np.isfinite(full).all() and filled == 0 and len(assumed) == 14


def test_the_order_of_17_joints_is_told_by_their_places(tmp_path):
    assert read_keypoints(put(tmp_path, "a.json", POINTS.tolist())).order == "coco"
    clip = read_keypoints(put(tmp_path, "b.json", CLEAN.tolist()))
    assert clip.order == "h36m" and any("joint order h36m, told by" in n for n in clip.notes)
    np.testing.assert_allclose(clip.keypoints, CLEAN, rtol=1e-5)
    assert read_keypoints(tmp_path / "b.json", "coco").order == "coco"


def test_hostile_files_are_one_line_in_bounded_time(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    os.symlink("/dev/zero", tmp_path / "zero.json")
    put(tmp_path, "deep.json", "[" * 200_000)
    put(tmp_path, "digits.json", '{"keypoints": [[[' + "9" * 5000 + ", 1, 1]]]}")
    put(tmp_path, "mixed.json", [{"keypoints": FLAT[0], "image_id": 0}, 3])
    put(tmp_path, "object.json", {"keypoints": [[{"x": {}}] * 17]})
    put(tmp_path, "zero_fps.json", {"keypoints": POINTS.tolist(), "fps": 0})
    put(tmp_path, "ragged.json", {"keypoints": [POINTS[0].tolist(), POINTS[1, :9].tolist()]})
    put(tmp_path, "wide.csv", "x0,y0\n" + ",".join("1" * 9))
    (tmp_path / "bytes.json").write_bytes(bytes(range(256)))
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("keypoints.npy", "w", force_zip64=True) as f:
            np.lib.format.write_array_header_1_0(f, {"descr": "<f8", "fortran_order": False, "shape": (10**8, 17, 3)})
            for _ in range(150):
                f.write(bytes(1 << 20))
    start = time.perf_counter()
    names = [p.name for p in tmp_path.iterdir()] + ["x" * 300 + ".json", "a\0.json"]
    for name in names:
        with pytest.raises(KeypointError) as e:
            read_keypoints(str(tmp_path / name))
        assert "\n" not in str(e.value) and len(str(e.value)) < 700, name
    assert time.perf_counter() - start < 20


def test_minus_one_is_not_seen(tmp_path):
    points = POINTS.copy()
    points[2, 9, :2] = -1
    clip = read_keypoints(put(tmp_path, "a.json", points.tolist()))
    assert clip.filled == 1 and clip.keypoints[2].min() >= 0


def test_arrays_of_frames_with_several_people_and_none(tmp_path):
    """np.save of a list of frames, as people collect a detector's outputs; np.savez of an array without a name."""
    frames = np.empty(6, object)
    for i, p in enumerate(POINTS):
        frames[i] = np.stack([p, p + [700, 0, 0]]) if i != 2 else None
    np.save(tmp_path / "a.npy", frames, allow_pickle=True)
    clip = read_keypoints(tmp_path / "a.npy", "coco")
    assert clip.frames.tolist() == [0, 1, 2, 3, 4, 5] and clip.filled == 17
    alone = read_keypoints(put(tmp_path, "a.json", POINTS.tolist()), "coco")
    np.testing.assert_allclose(clip.keypoints[5], alone.keypoints[5], atol=1e-3)
    np.savez(tmp_path / "b.npz", POINTS)
    assert read_keypoints(tmp_path / "b.npz", "coco").filled == 0
