"""Small data sets in exactly the formats of the real ones, with made-up people on made-up images."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image


def image(rng: np.random.Generator, width: int = 96, height: int = 128) -> np.ndarray:
    """Smooth colours, so that JPEG changes them little."""
    small = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


# ---- TSV
# -----------------------------------------------------------------------------------------------------------------


def write_tsv(path, rows: list[list[str]], lineidx: bool = True) -> None:
    """One TSV with its .lineidx of byte offsets, as tsv_writer of MeshTransformer leaves them."""
    offsets, position = [], 0
    with open(path, "w", newline="\n") as f:
        for row in rows:
            line = "\t".join(row) + "\n"
            f.write(line)
            offsets.append(position)
            position += len(line)
    if lineidx:
        path.with_suffix(".lineidx").write_text("".join(f"{o}\n" for o in offsets))


def body_label(rng: np.random.Generator, **changes) -> dict:
    joints_2d = np.concatenate([rng.uniform(10, 80, (24, 2)), np.ones((24, 1))], 1)
    joints_3d = np.concatenate([rng.normal(size=(24, 3)), np.ones((24, 1))], 1)
    return {
        "center": [48.25, 64.5],
        "scale": 0.55,
        "2d_joints": [joints_2d.tolist()],
        "has_2d_joints": 1,
        "3d_joints": [joints_3d.tolist()],
        "has_3d_joints": 1,
        "pose": rng.normal(0, 0.3, 72).tolist(),
        "betas": rng.normal(size=10).tolist(),
        "has_smpl": 1,
        "gender": "f",
        **changes,
    }


def write_tsv_set(
    folder, labels: list[dict], images: list[np.ndarray], name: str = "test", lineidx: bool = True
) -> None:
    """img/hw/label TSVs named as the official sets name them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"{name}/{i:05d}.jpg" for i in range(len(labels))]
    write_tsv(
        folder / f"{name}.img.tsv", [[k, base64.b64encode(jpeg(p)).decode()] for k, p in zip(keys, images)], lineidx
    )
    write_tsv(folder / f"{name}.label.tsv", [[k, json.dumps([label])] for k, label in zip(keys, labels)], lineidx)
    hw = [[k, json.dumps([{"height": p.shape[0], "width": p.shape[1]}])] for k, p in zip(keys, images)]
    write_tsv(folder / f"{name}.hw.tsv", hw, lineidx)


# ---- 4D-Humans
# -----------------------------------------------------------------------------------------------------------


def hmr2_person(rng: np.random.Generator, **changes) -> dict:
    return {
        "center": np.array([40.0, 60.0]),
        "scale": np.array([60.0, 100.0]) / 200.0,
        "keypoints_2d": np.concatenate([rng.uniform(0, 90, (44, 2)), np.ones((44, 1))], 1).astype(np.float32),
        "keypoints_3d": np.concatenate([rng.normal(size=(44, 3)), np.ones((44, 1))], 1).astype(np.float32),
        "body_pose": rng.normal(0, 0.2, 72).astype(np.float32),
        "betas": rng.normal(size=10).astype(np.float32),
        "has_body_pose": np.array(1.0),
        "has_betas": np.array(1.0),
        "extra_info": {"fitting_loss": np.array({"reprojection_loss": 3.0}, dtype=object)},
        **changes,
    }


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_hmr2_tar(path, samples: list[tuple[str, np.ndarray, list[dict]]]) -> None:
    members = []
    for key, pixels, people in samples:
        members += [(f"{key}.data.pyd", pickle.dumps(people)), (f"{key}.jpg", jpeg(pixels))]
    write_tar(path, members)


# ---- 3DPW
# ----------------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did at protocol 2: text and array bytes are both BINSTRING, numpy lives in numpy.core."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2, fix_imports=True)

    def _string(self, data: bytes, obj) -> None:
        self.write(b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(obj)

    def save_bytes(self, obj):
        self._string(obj, obj)

    def save_str(self, obj):
        self._string(obj.encode("latin1"), obj)

    def save_global(self, obj, name=None):
        if getattr(obj, "__module__", "") == "numpy._core.multiarray":
            self.write(b"cnumpy.core.multiarray\n" + obj.__name__.encode() + b"\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str


def python2_pickle(value) -> bytes:
    out = io.BytesIO()
    pickler = Python2Pickler(out)
    # functions go through save_global by type
    pickler.dispatch = {**Python2Pickler.dispatch, type(np.zeros(1).__reduce__()[0]): Python2Pickler.save_global}
    pickler.dump(value)
    return out.getvalue()


def write_3dpw(
    root,
    body,
    people: int = 2,
    frames: int = 3,
    split: str = "test",
    sequence: str = "downtown_made_up_00",
    seed: int = 0,
    invalid: tuple[tuple[int, int], ...] = (),
) -> dict:
    """One sequence of `people` posed bodies seen by a moving camera; images are made up. Returns the pickled dict.

    `body` is used as 3DPW's gendered SMPL; `invalid` lists (person, frame) whose camera is not aligned.
    """
    import torch
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    turns = Rotation.from_euler(
        "xyz", np.stack([np.pi + 0.05 * np.arange(frames), 0.1 * np.arange(frames), np.zeros(frames)], 1)
    )
    poses_cam = np.tile(np.eye(4), (frames, 1, 1))
    poses_cam[:, :3, :3] = turns.as_matrix()
    poses_cam[:, :3, 3] = [0.1, 0.2, 6.0]
    intrinsics = np.array([[120.0, 0, 48], [0, 120.0, 64], [0, 0, 1]])
    data: dict = {
        "sequence": sequence,
        "cam_poses": poses_cam,
        "cam_intrinsics": intrinsics,
        "img_frame_ids": np.arange(frames) * 2,
        "genders": ["m", "f"][:people],
        "texture_maps": [np.zeros((2, 2, 3), np.uint8)] * people,
        "poses": [],
        "trans": [],
        "betas": [],
        "jointPositions": [],
        "campose_valid": [],
        "poses2d": [],
    }
    for person in range(people):
        start, step = rng.normal(0, 0.25, 72), rng.normal(0, 0.05, 72)
        pose = start + step * np.arange(frames)[:, None]
        betas = rng.normal(0, 0.7, 10)
        trans = rng.normal(0, 0.2, (frames, 3))
        with torch.no_grad():
            joints = body(
                torch.from_numpy(pose).float(),
                torch.from_numpy(betas).float().expand(frames, -1),
                torch.from_numpy(trans).float(),
            ).joints
        valid = np.ones(frames, np.int64)
        for p, f in invalid:
            valid[f] = 0 if p == person else valid[f]
        seen = joints.double().numpy() @ turns.as_matrix().transpose(0, 2, 1) + poses_cam[:, None, :3, 3]
        pixels = seen @ intrinsics.T
        pixels = pixels[:, :18, :2] / pixels[:, :18, 2:]
        detected = np.concatenate([pixels, rng.integers(0, 2, (frames, 18, 1)) * 0.9], 2).transpose(0, 2, 1)
        detected[-1] = 0  # no detection in the last frame
        for key, value in (
            ("poses", pose),
            ("trans", trans),
            ("betas", betas),
            ("jointPositions", joints.double().numpy().reshape(frames, 72)),
            ("campose_valid", valid),
            ("poses2d", detected),
        ):
            data[key].append(value)
    folder = root / "sequenceFiles" / split
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sequence}.pkl").write_bytes(python2_pickle(data))
    images = root / "imageFiles" / sequence
    images.mkdir(parents=True, exist_ok=True)
    for f in range(frames):
        (images / f"image_{f:05d}.jpg").write_bytes(jpeg(image(rng)))
    return data


# ---- FreiHAND
# ------------------------------------------------------------------------------------------------------------


def write_freihand(root, body, hands: int = 3, split: str = "evaluation", seed: int = 0) -> None:
    """Posed right hands half a metre from the camera, in FreiHAND's JSON files."""
    import torch

    rng = np.random.default_rng(seed)
    k = [[480.0, 0, 112], [0, 480.0, 112], [0, 0, 1]]
    with torch.no_grad():
        pose = torch.from_numpy(rng.normal(0, 0.3, (hands, 48))).float()
        betas = torch.from_numpy(rng.normal(0, 0.5, (hands, 10))).float()
        vertices = body(pose, betas, torch.tensor([[0.0, 0.0, 0.6]]).expand(hands, 3)).vertices
        xyz = body.regress("hand21", vertices)
    mano = np.concatenate([pose.numpy(), betas.numpy(), np.full((hands, 2), 112.0), np.full((hands, 1), 0.03)], 1)
    for key, value in (
        ("K", [k] * hands),
        ("xyz", xyz.tolist()),
        ("verts", vertices.tolist()),
        ("scale", [0.03] * hands),
        ("mano", [[m.tolist()] for m in mano]),
    ):
        (root / f"{split}_{key}.json").write_text(json.dumps(value))
    images = root / split / "rgb"
    images.mkdir(parents=True)
    for i in range(hands):
        (images / f"{i:08d}.jpg").write_bytes(jpeg(image(rng, 224, 224)))
