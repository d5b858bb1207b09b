"""Human3.6M (VideoPose3D files), MotionBERT clips and MPI-INF-3DHP (P-STMO files) as `PoseClip`s.

In: the .npz / .pkl files those projects' preparation scripts write. Out: clips in the H36M joint order, root-relative
camera space. Camera parameters come from a JSON file (they are not in the pose files). Pickles are read as plain data
only.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..io.safe_pickle import read_npz, read_pickle
from .cameras import normalise_2d, world_to_camera
from .pose_clip import PoseClip, root_relative

TRAIN_SUBJECTS, TEST_SUBJECTS = ("S1", "S5", "S6", "S7", "S8"), ("S9", "S11")
# the 17 moving joints among Human3.6M's 32
H36M_32_TO_17 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
CAMERA_IDS = ("54138969", "55011271", "58860488", "60457274")
RESOLUTIONS = {"54138969": (1000, 1002), "55011271": (1000, 1000), "58860488": (1000, 1000), "60457274": (1000, 1002)}
# 3DHP as P-STMO orders it -> H36M order
HP3D_TO_H36M = (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)
HP3D_PCK_JOINTS = (10, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6)  # its first 14 joints, in H36M order


def read_cameras(path: str | Path) -> dict[str, list[dict]]:
    """Subject -> four cameras with orientation [4] (unit quaternion w, x, y, z), translation [3] (m), width, height.

    Takes {"S1": [{"orientation", "translation", "res_w", "res_h"}, ...]} or the common camera-parameters.json
    ({"extrinsics": {"S1": {"54138969": {"R": 3x3, "t": mm}}}}).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such camera file")
    try:
        raw = json.loads(path.read_text())
        if "extrinsics" in raw:
            return {
                s: [_from_matrix(i, by_id[i]) for i in CAMERA_IDS] for s, by_id in raw["extrinsics"].items() if by_id
            }
        return {s: [_from_quaternion(i, c) for i, c in zip(CAMERA_IDS, rows)] for s, rows in raw.items()}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{path}: not a camera file of the two known layouts ({type(e).__name__}: {e})") from e


def _from_matrix(camera: str, entry: dict) -> dict:
    rotation, t = np.array(entry["R"], np.float64), np.array(entry["t"], np.float64).reshape(3)
    position = -rotation.T @ t / 1000.0
    width, height = RESOLUTIONS[camera]
    return {
        "orientation": Rotation.from_matrix(rotation.T).as_quat(scalar_first=True),
        "translation": position,
        "width": width,
        "height": height,
    }


def _from_quaternion(camera: str, entry: dict) -> dict:
    width, height = entry.get("res_w", RESOLUTIONS[camera][0]), entry.get("res_h", RESOLUTIONS[camera][1])
    q, t = np.array(entry["orientation"], np.float64), np.array(entry["translation"], np.float64)
    if q.shape != (4,) or t.shape != (3,):
        raise ValueError("orientation must have 4 numbers and translation 3")
    t = t / 1000.0 if np.abs(t).max() > 100 else t  # some copies keep millimetres
    return {"orientation": q / np.linalg.norm(q), "translation": t, "width": width, "height": height}


def read_h36m(
    path_3d: str | Path, path_2d: str | Path, cameras: str | Path, subjects: Iterable[str] = TRAIN_SUBJECTS
) -> list[PoseClip]:
    """Clips of data_3d_h36m.npz + data_2d_h36m_*.npz: one per subject, action and camera; 2D is cut to the 3D's
    length."""
    poses = _member(path_3d, "positions_3d")
    points = _member(path_2d, "positions_2d")
    rigs = read_cameras(cameras)
    out = []
    for subject in subjects:
        for name, table in (("3D poses", poses), ("2D keypoints", points), ("cameras", rigs)):
            if subject not in table:
                raise ValueError(f"Human3.6M: subject {subject} has no {name}; there are {sorted(table)}")
        for action, world in poses[subject].items():
            world = np.asarray(world, np.float64)
            if world.shape[1] == 32:
                world = world[:, list(H36M_32_TO_17)]
            views = points[subject].get(action)
            if views is None:
                continue  # the detections of one broken video are missing from the published files
            for camera, pixels, rig in zip(CAMERA_IDS, views, rigs[subject]):
                length = min(len(world), len(pixels))
                if len(pixels) < len(world):
                    raise ValueError(
                        f"{path_2d}: {subject}/{action}/{camera} has {len(pixels)} frames, the 3D file {len(world)}"
                    )
                seen = world_to_camera(world[:length], rig["orientation"], rig["translation"])
                keypoints = normalise_2d(np.asarray(pixels[:length], np.float32), rig["width"], rig["height"])
                out.append(PoseClip(subject, action.split(" ")[0], camera, keypoints, root_relative(seen)))
    return out


def _member(path: str | Path, key: str) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        data = read_npz(path, [key])[key]
    except (zipfile.BadZipFile, KeyError, pickle.UnpicklingError, ValueError) as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e
    data = data.item() if data.shape == () else data
    if not isinstance(data, dict):
        raise ValueError(f"{path}: {key!r} must be a dictionary, as the preparation scripts write it")
    return data


def read_motionbert_clips(folder: str | Path, split: str = "train") -> list[PoseClip]:
    """MotionBERT's prepared clips: folder/H36M-SH/{train,test}/*.pkl (or any folder of such files).

    data_input [243, 17, 3] is x, y, confidence; data_label [243, 17, 3] is normalised by the image, root-relative in
    the official training. Both stay in those units.
    """
    folder = Path(folder)
    files = sorted(folder.rglob(f"{split}/*.pkl")) or sorted(folder.glob("*.pkl"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .pkl clips (looked for {split}/*.pkl)")
    out = []
    for path in files:
        try:
            clip = read_pickle(path)
        except pickle.UnpicklingError as e:
            raise ValueError(f"{path}: cannot be read: {e}") from e
        if not isinstance(clip, dict) or not {"data_input", "data_label"} <= clip.keys():
            raise ValueError(f"{path}: expected a dictionary with data_input and data_label")
        keypoints, label = (np.asarray(clip[k], np.float32) for k in ("data_input", "data_label"))
        out.append(PoseClip("", path.stem, "", keypoints, root_relative(label)))
    return out


def read_motionbert_file(path: str | Path, split: str) -> list[PoseClip]:
    """MotionBERT's one file (h36m_sh_conf_cam_source_final.pkl): Stacked-Hourglass points, poses in image units, and
    the factor of every frame that makes them millimetres. One clip per `source`, a video of one camera.

    The file holds per split "train" and "test": joint_2d [N, 17, 2] and joint3d_image [N, 17, 3] in pixels, confidence
    [N, 17(, 1)], camera_name and source [N], 2.5d_factor [N] millimetres per pixel; test sets also joints_2.5d_image
    [N, 17, 3] mm, which are the truth there. Lengths are halves of the image's width, as the network is trained.
    """
    try:
        data = read_pickle(path)
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e
    needed = {"joint_2d", "joint3d_image", "confidence", "camera_name", "source", "2.5d_factor"}
    if not isinstance(data, dict) or not isinstance(data.get(split), dict) or not needed <= data[split].keys():
        raise ValueError(f"{path}: expected a dictionary with {split!r} and in it {', '.join(sorted(needed))}")
    part = data[split]
    points, pose = (np.asarray(part[k], np.float32) for k in ("joint_2d", "joint3d_image"))
    confidence = np.asarray(part["confidence"], np.float32).reshape(len(points), 17, 1)
    factor, source = np.asarray(part["2.5d_factor"], np.float32), np.asarray(part["source"], str)
    cameras = np.asarray(part["camera_name"], str)
    if not len(points) == len(pose) == len(factor) == len(source) == len(cameras):
        raise ValueError(f"{path}: {split}: the arrays have different numbers of frames")
    if "joints_2.5d_image" in part and split == "test":
        pose = np.asarray(part["joints_2.5d_image"], np.float32) / factor[:, None, None]
    clips = []
    starts = np.flatnonzero(np.r_[True, source[1:] != source[:-1]]) if len(source) else []
    for begin, end in zip(starts, [*starts[1:], len(source)]):
        frames = slice(begin, end)
        width, height = RESOLUTIONS.get(cameras[begin], (1000, 1000))
        keypoints = np.concatenate([normalise_2d(points[frames], width, height), confidence[frames]], axis=-1)
        name = source[begin]
        subject = re.search(r"(?:^|_)s(?:ubject)?_?0?(\d+)", name, re.IGNORECASE)
        half = width / 2
        clips.append(
            PoseClip(
                f"S{subject[1]}" if subject else "",
                str(np.asarray(part["action"], str)[begin]) if "action" in part else name,
                cameras[begin],
                keypoints.astype(np.float32),
                root_relative(pose[frames] / half),
                metres=factor[frames] * half / 1000.0,
            )
        )
    return clips


def read_3dhp(path: str | Path, split: str) -> list[PoseClip]:
    """MPI-INF-3DHP as P-STMO prepares it (data_train_3dhp.npz / data_test_3dhp.npz), in H36M joint order and metres.

    split "train": 2D normalised by 2048 x 2048; "test": TS5 and TS6 by 1920 x 1080, frames with valid != 1 marked.
    """
    if split not in ("train", "test"):
        raise ValueError(f"read_3dhp: split must be 'train' or 'test', got {split!r}")
    data = _member(path, "data")
    order = list(HP3D_TO_H36M)
    out = []
    for name, entry in data.items():
        views = entry[0] if split == "train" else {"0": entry}
        if not isinstance(views, dict):
            raise ValueError(f"{path}: {name} does not look like {split} data")
        for camera, view in views.items():
            if not {"data_3d", "data_2d"} <= view.keys():
                raise ValueError(f"{path}: {name}/{camera} lacks data_3d or data_2d, it has {sorted(view)}")
            pose, pixels = np.asarray(view["data_3d"], np.float64), np.asarray(view["data_2d"], np.float32)
            pose = pose.reshape(len(pose), 17, -1)[:, order]
            pixels = pixels.reshape(len(pixels), 17, -1)[:, order]
            size = (1920, 1080) if split == "test" and name in ("TS5", "TS6") else (2048, 2048)
            valid = np.asarray(view["valid"]).reshape(-1) == 1 if "valid" in view else None
            subject, _, action = name.partition(" ")
            out.append(
                PoseClip(
                    subject,
                    action or name,
                    str(camera),
                    normalise_2d(pixels, *size)[..., :2],
                    root_relative(pose / 1000.0),
                    valid,
                )
            )
    return out
