"""3DPW as published: `sequenceFiles/<split>/*.pkl` (Python 2 pickles) and `imageFiles/<sequence>/image_00000.jpg`.

In: the folder that holds both. Out: one Record per person and frame whose camera is aligned, everything in camera axes.
The pickles are read as plain arrays; nothing in them is executed. Joints are SMPL's 24; J14 joints come from the mesh.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ...geometry.crop import BOX_MARGIN
from ...io.safe_pickle import read_pickle
from .record import Camera, DataError, Reader, Record, float_array, gender_name, plain_data, require, stored_image

SOURCE = (
    "3DPW is licensed for research: register at the 3DPW page of the Virtual Humans group (MPI Informatics / Tübingen)"
)
SPLITS = ("train", "validation", "test")
BOXES = ("detected", "projected")
_KEYS = ("sequence", "poses", "trans", "betas", "jointPositions", "cam_poses", "cam_intrinsics", "campose_valid")


class ThreeDPWReader(Reader):
    """People of one split of 3DPW.

    Args:
        root: holds sequenceFiles and imageFiles.
        split: train, validation or test.
        box: "detected": around the visible 2D detections, as SPIN and its descendants crop; "projected": around the
            projected SMPL joints (also used where a frame has no detection). Both widened by 1.2.
        valid_only: leave out frames whose camera pose is not aligned to the image.
    """

    format = "3dpw"

    def __init__(self, root: str | Path, split: str = "test", box: str = "detected", valid_only: bool = True):
        if split not in SPLITS or box not in BOXES:
            raise ValueError(f"3DPW: split must be one of {SPLITS} and box one of {BOXES}, got {split!r}, {box!r}")
        self.root, self.split, self.box = Path(root), split, box
        folder = require(self.root / "sequenceFiles" / split, "3DPW's sequence files (sequenceFiles.zip)", SOURCE)
        files = sorted(folder.glob("*.pkl"))
        if not files:
            raise DataError(f"{folder}: no .pkl; expected 3DPW's sequence files")
        self._sequences = [_sequence(file) for file in files]
        self._index = [  # (sequence, person, frame), a person's frames one after the other
            (s, p, f)
            for s, sequence in enumerate(self._sequences)
            for p, poses in enumerate(sequence["poses"])
            for f in range(len(poses))
            if not valid_only or sequence["campose_valid"][p][f]
        ]

    def __len__(self) -> int:
        return len(self._index)

    def place(self, index: int) -> tuple[str, int]:
        s, person, frame = self._index[index]
        return f"{self._sequences[s]['sequence']}_{person}", frame

    def _record(self, index: int) -> Record:
        s, person, frame = self._index[index]
        data = self._sequences[s]
        name = str(data["sequence"])
        world = np.asarray(data["cam_poses"][frame], np.float64)  # [4, 4] world to camera
        rotation, shift = world[:3, :3], world[:3, 3]
        joints = np.asarray(data["jointPositions"][person][frame], np.float64).reshape(24, 3)
        pose = np.array(data["poses"][person][frame], np.float64)
        translation = np.asarray(data["trans"][person][frame], np.float64)
        rest_pelvis = joints[0] - translation  # SMPL turns about the pelvis, which does not lie at the origin
        pose[:3] = (Rotation.from_matrix(rotation) * Rotation.from_rotvec(pose[:3])).as_rotvec()
        in_camera = joints @ rotation.T + shift
        intrinsics = np.asarray(data["cam_intrinsics"], np.float64)
        points = in_camera @ intrinsics.T
        projected = points[:, :2] / points[:, 2:]
        detected = self._detected(data, person, frame)
        around = projected
        if self.box == "detected" and detected is not None and (detected[:, 2] > 0).sum() > 1:
            around = detected[detected[:, 2] > 0, :2]
        low, high = around.min(0), around.max(0)
        size = BOX_MARGIN * np.maximum(high - low, 1.0)
        return Record(
            f"{name}_{person}/image_{frame:05d}",
            stored_image(self.root / "imageFiles" / name / f"image_{frame:05d}.jpg"),
            center=(low + high) / 2,
            scale=float(size.max()) / 200.0,
            box_size=size,
            keypoints_2d=detected,
            keypoints_2d_set="" if detected is None else "openpose18",
            keypoints_3d=np.concatenate([in_camera, np.ones((24, 1))], 1).astype(np.float32),
            keypoints_3d_set="smpl24",
            pose=pose.astype(np.float32),
            betas=float_array(np.ravel(data["betas"][person])[:10], (10,), f"3DPW {name}: betas"),
            has_smpl=True,
            translation=(rotation @ joints[0] + shift - rest_pelvis).astype(np.float32),
            gender=gender_name(data["genders"][person]),
            camera=Camera(intrinsics, rotation, shift),
            sequence=self.place(index)[0],
            frame=frame,
            extra={"joints_2d_smpl24": projected.astype(np.float32)},
        )

    @staticmethod
    def _detected(data: dict, person: int, frame: int) -> np.ndarray | None:
        if data["poses2d"] is None:
            return None
        return np.asarray(data["poses2d"][person][frame], np.float32).T.copy()  # [3, 18] -> [18, 3]


def _sequence(path: Path) -> dict:
    """The fields of one pickle that are used, checked (texture maps and scans are dropped)."""
    data = plain_data(read_pickle, path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected 3DPW's dict, got {type(data).__name__}")
    missing = [k for k in _KEYS if k not in data]
    genders = data.get("genders", data.get("gender"))
    if missing or genders is None:
        raise DataError(f"{path}: no {', '.join(missing) or 'genders'}; is this a file of 3DPW's sequenceFiles?")
    poses = data["poses"]
    frames = len(data["cam_poses"])
    for p, value in enumerate(poses):
        if np.shape(value)[1:] != (72,) or len(value) > frames:
            raise DataError(f"{path}: poses[{p}] must be [<= {frames}, 72], got {list(np.shape(value))}")
    return {**{k: data[k] for k in _KEYS}, "genders": genders, "poses2d": data.get("poses2d")}
