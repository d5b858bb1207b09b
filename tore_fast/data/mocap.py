"""Motion capture as training data: BVH, ASF/AMC or a clip archive -> 17 joints in metres -> clips seen by synthetic
cameras.

In: a folder with clips.npz + index.json, or .bvh / .asf + .amc files. Out: `Motion` (world, z up) and `PoseClip`s. Next
on the way: train/lifting.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..geometry.windows import at_times
from ..io.bvh import BvhMotion, read_bvh
from .amc import read_amc, read_asf
from .cameras import detector_noise, random_camera
from .pose_clip import PoseClip, root_relative

# Source joints of the 17 (in H36M order); a tuple is averaged. ASF names are bone ends.
ASF_JOINTS = (
    ("lhipjoint", "rhipjoint"),
    "rhipjoint",
    "rfemur",
    "rtibia",
    "lhipjoint",
    "lfemur",
    "ltibia",
    "upperback",
    "lowerneck",
    "upperneck",
    "head",
    "lclavicle",
    "lhumerus",
    "lradius",
    "rclavicle",
    "rhumerus",
    "rradius",
)
# cgspeed's conversion of the CMU files; `with_thorax` gives back the bone that it lost
CGSPEED_JOINTS = (
    ("LeftUpLeg", "RightUpLeg"),
    "RightUpLeg",
    "RightLeg",
    "RightFoot",
    "LeftUpLeg",
    "LeftLeg",
    "LeftFoot",
    "Spine1",
    "Neck1",
    "Head",
    "End_Head",
    "LeftArm",
    "LeftForeArm",
    "LeftHand",
    "RightArm",
    "RightForeArm",
    "RightHand",
)
CMU_UNIT_M = 0.0254 / 0.45
CAMERA_SEED = 12345  # of the cameras that film test motions: the same for every model


@dataclass(frozen=True)
class Motion:
    id: str
    subject: str
    action: str
    split: str  # "train", "test" or ""
    joints: np.ndarray  # [T, 17, 3] float32, metres, z up
    fps: float

    def resampled(self, fps: float) -> Motion:
        """The motion at another frame rate, positions interpolated linearly."""
        if fps <= 0:
            raise ValueError(f"{self.id}: fps must be positive, got {fps}")
        if fps == self.fps:
            return self
        count = max(1, int((len(self.joints) - 1) * fps / self.fps) + 1)
        joints = at_times(self.joints, np.arange(count) * self.fps / fps)
        return Motion(self.id, self.subject, self.action, self.split, joints, fps)


def pick_joints(names: list[str], positions: np.ndarray, table: tuple) -> np.ndarray:
    """[T, 17, 3] from named positions [T, J, 3]; KeyError-free: ValueError names the joints that are missing."""
    wanted = [(n,) if isinstance(n, str) else n for n in table]
    missing = sorted({n for group in wanted for n in group} - set(names))
    if missing:
        raise ValueError(f"the skeleton lacks the joints {missing}; it has {names}")
    return np.stack([positions[:, [names.index(n) for n in group]].mean(axis=1) for group in wanted], axis=1)


def _z_up(joints: np.ndarray) -> np.ndarray:
    """y-up -> z-up, by a turn about x."""
    return (joints[..., [0, 2, 1]] * np.array([1, -1, 1])).astype(np.float32)


def with_thorax(motion: BvhMotion) -> BvhMotion:
    """cgspeed's skeleton puts neck and shoulders onto Spine1: the bone below them, some 11 cm, was lost. It gets
    Spine1's own offset.

    Files whose neck and shoulders have offsets, and other skeletons, come back as they are.
    """
    names, above = motion.names, ("Neck", "LeftShoulder", "RightShoulder")
    if not {"Spine1", *above} <= set(names):
        return motion
    spine, rows = names.index("Spine1"), [names.index(n) for n in above]
    if any(motion.parents[row] != spine or motion.offsets[row].any() for row in rows):
        return motion
    offsets = motion.offsets.copy()
    offsets[rows] = offsets[spine]
    return dataclasses.replace(motion, offsets=offsets)


def read_bvh_motion(path: str | Path, scale_m: float = CMU_UNIT_M, joints: tuple = CGSPEED_JOINTS) -> Motion:
    """A BVH file as 17 joints; `joints` names the source joint of each (default: cgspeed's CMU skeleton, its thorax
    restored)."""
    path = Path(path)
    motion = with_thorax(read_bvh(path))
    try:
        world = pick_joints(motion.names, motion.positions(), joints)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return Motion(path.stem, path.stem.split("_")[0], "", "", _z_up(world * scale_m), motion.fps)


def read_amc_motion(path: str | Path, skeleton: str | Path | None = None, fps: float = 120.0) -> Motion:
    """An .amc file with its .asf skeleton (default: the one of the same subject beside it) as 17 joints."""
    path = Path(path)
    skeleton = path.with_name(f"{path.stem.split('_')[0]}.asf") if skeleton is None else Path(skeleton)
    asf = read_asf(skeleton)
    try:
        world = pick_joints(asf.names, read_amc(path, asf), ASF_JOINTS)
    except ValueError as e:
        raise ValueError(str(e) if str(e).startswith(str(path)) else f"{skeleton}: {e}") from None
    return Motion(path.stem, path.stem.split("_")[0], "", "", _z_up(world), fps)


def read_motions(path: str | Path) -> list[Motion]:
    """Every motion of a folder (clips.npz + index.json, or .bvh and .amc files), or of one file."""
    path = Path(path)
    if path.is_dir() and (path / "index.json").is_file():
        return _read_archive(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".bvh", ".amc")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{path}: expected a folder with clips.npz + index.json, or .bvh / .amc files")
    return [read_bvh_motion(p) if p.suffix == ".bvh" else read_amc_motion(p) for p in files]


def _read_archive(path: Path) -> list[Motion]:
    index = json.loads((path / "index.json").read_text())
    out = []
    with np.load(path / "clips.npz", allow_pickle=False) as arrays:
        for row in index["clips"]:
            if row["id"] not in arrays:
                raise ValueError(f"{path / 'clips.npz'}: lacks the clip {row['id']!r} named in index.json")
            joints = arrays[row["id"]]
            if joints.ndim != 3 or joints.shape[1:] != (17, 3):
                raise ValueError(f"{path / 'clips.npz'}: {row['id']} must be [T, 17, 3], got {list(joints.shape)}")
            action = row.get("description", "").split(" - ")[0].split(",")[0]
            out.append(
                Motion(row["id"], row["subject"], action, row.get("split", ""), joints.astype(np.float32), row["fps"])
            )
    return out


def seen_by_camera(
    motion: Motion, rng: np.random.Generator, noise_px: float = 5.0, frames: slice = slice(None)
) -> PoseClip:
    """The motion (or some frames of it) as a random static camera and a noisy 2D detector would record it."""
    joints = motion.joints[frames].astype(np.float64)
    camera = random_camera(rng, joints[:, 0].mean(axis=0))
    seen = camera.to_camera(joints)
    if seen[..., 2].min() < 0.5:  # somebody walks past the camera: stand further away
        shift = 0.5 - seen[..., 2].min()
        seen = seen + np.array([0.0, 0.0, shift])
    keypoints = camera.project(seen).astype(np.float32)
    if noise_px > 0:
        keypoints = keypoints + detector_noise(rng, keypoints.shape, noise_px)
    return PoseClip(motion.subject, motion.action or motion.id, "synthetic", keypoints, root_relative(seen))


def film(items: Sequence[Motion] | Sequence[PoseClip], noise_px: float, seed: int, views: int = 1) -> list[PoseClip]:
    """Motions through `views` random cameras each (fixed by `seed` and the motion's id); recorded clips as they are."""
    out = []
    for item in items:
        if isinstance(item, PoseClip):
            out.append(item)
            continue
        for view in range(views):
            rng = np.random.default_rng((seed, view, *item.id.encode()))
            out.append(seen_by_camera(item, rng, noise_px))
    return out


def split_subjects(
    motions: list[Motion], validation_share: float = 0.12
) -> tuple[list[Motion], list[Motion], list[Motion]]:
    """(train, validation, test). Validation takes whole *training* subjects, the smallest ones, until it has its share.

    Test subjects choose nothing: neither weights nor settings.
    """
    test = [m for m in motions if m.split == "test"]
    rest = [m for m in motions if m.split != "test"]
    frames: dict[str, int] = {}
    for m in rest:
        frames[m.subject] = frames.get(m.subject, 0) + len(m.joints)
    held_out: set[str] = set()
    for subject in sorted(frames, key=lambda s: (frames[s], s)):
        if sum(frames[s] for s in held_out) >= validation_share * sum(frames.values()) or len(held_out) + 1 >= len(
            frames
        ):
            break
        held_out.add(subject)
    if not held_out:
        raise ValueError(
            f"split_subjects: {len(frames)} training subject(s) cannot be split into training and validation"
        )
    return [m for m in rest if m.subject not in held_out], [m for m in rest if m.subject in held_out], test
