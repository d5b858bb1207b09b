"""Whatever motion or pose-lifting data lies at a path, split into train, validation and test.

In: a folder or file of Human3.6M (VideoPose3D), MotionBERT clips, MPI-INF-3DHP (P-STMO) or motion capture. Out:
`PoseSet`. The readers are data/h36m.py and data/mocap.py. Next on the way: train/lifting.py (training),
cli/eval_lifting.py (evaluation).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .h36m import (
    HP3D_PCK_JOINTS,
    TEST_SUBJECTS,
    TRAIN_SUBJECTS,
    read_3dhp,
    read_h36m,
    read_motionbert_clips,
    read_motionbert_file,
)
from .mocap import Motion, read_motions, split_subjects
from .pose_clip import PoseClip

SPLITS = ("train", "validation", "test")
KINDS = ("h36m", "motionbert", "3dhp", "mocap")
Items = Sequence[Motion] | Sequence[PoseClip]


class PoseSet(NamedTuple):
    kind: str  # one of KINDS
    items: dict[str, Items]  # the splits that were asked for
    pck_joints: tuple[int, ...] | None = None  # joints PCK and AUC count; None: all


def kind_of(path: Path) -> str:
    """Which reader fits, told by file names."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file() and path.suffix == ".pkl":
        return "motionbert"
    if path.is_file():
        return "3dhp" if path.name.startswith(("data_train_3dhp", "data_test_3dhp")) else "mocap"
    if (path / "data_3d_h36m.npz").is_file():
        return "h36m"
    if any(path.glob("data_*_3dhp.npz")):
        return "3dhp"
    if next(path.rglob("*.pkl"), None) is not None:
        return "motionbert"
    return "mocap"


POINT_FILES = {"cpn": "cpn_ft_h36m_dbb", "sh": "sh_ft_h36m", "gt": "gt"}  # data_2d_h36m_NAME.npz


def read_pose_set(
    path: str | Path,
    cameras: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
    keypoints_2d: str = "",
    val_subjects: str = "S8",
) -> PoseSet:
    """The named splits of the data at `path`; a split the data does not have is empty.

    Validation is made of training material that `train` then lacks: the last training subject (Human3.6M, 3DHP), whole
    subjects of at least an eighth of the frames (motion capture), the last twentieth of the clips, which carry no
    subject (MotionBERT).

    Args:
        cameras: JSON of camera parameters, which Human3.6M's pose files need.
        keypoints_2d: Human3.6M: cpn, sh, gt, or a file; "" takes the first data_2d_h36m_*.npz by name.
        val_subjects: Human3.6M: training subjects that `validation` takes from `train`, separated by commas, or "none".
    """
    path = Path(path)
    wrong = [s for s in splits if s not in SPLITS]
    if wrong:
        raise ValueError(f"read_pose_set: split must be one of {SPLITS}, got {wrong[0]!r}")
    kind = kind_of(path)
    if kind != "h36m" and (keypoints_2d or val_subjects != "S8"):
        raise ValueError(
            f"--{'keypoints-2d' if keypoints_2d else 'val-subjects'}: for Human3.6M's files; {path} is {kind}"
        )
    if kind == "h36m":
        return PoseSet(kind, _h36m(path, cameras, splits, keypoints_2d, val_subjects))
    if kind == "3dhp":
        return PoseSet(kind, _3dhp(path, splits), HP3D_PCK_JOINTS)
    if kind == "motionbert":
        return PoseSet(kind, _motionbert(path, splits))
    motions = read_motions(path)
    if tuple(splits) == ("test",):  # nothing is trained: files without a split are all test material
        return PoseSet(kind, {"test": [m for m in motions if m.split in ("test", "")]})
    return PoseSet(kind, {k: v for k, v in zip(SPLITS, split_subjects(motions)) if k in splits})


def _h36m(
    path: Path, cameras: str | Path | None, splits: Sequence[str], keypoints_2d: str, val_subjects: str
) -> dict[str, Items]:
    if cameras is None:
        raise ValueError("--cameras: Human3.6M's pose files hold world coordinates; give the camera parameters (JSON)")
    held_out = () if val_subjects == "none" else tuple(val_subjects.split(","))
    if wrong := [s for s in held_out if s not in TRAIN_SUBJECTS]:
        raise ValueError(f"--val-subjects: expected none or some of {', '.join(TRAIN_SUBJECTS)}, got {wrong[0]!r}")
    subjects = {
        "train": [s for s in TRAIN_SUBJECTS if s not in held_out],
        "validation": held_out,
        "test": TEST_SUBJECTS,
    }
    points = _points_file(path, keypoints_2d)
    return {s: read_h36m(path / "data_3d_h36m.npz", points, cameras, subjects[s]) for s in splits}


def _points_file(path: Path, name: str) -> Path:
    """The 2D file that a short name, a path, or "" (the first by name) means."""
    found = sorted(path.glob("data_2d_h36m_*.npz"))
    if not found and not name:
        raise FileNotFoundError(f"{path}: no data_2d_h36m_*.npz beside data_3d_h36m.npz")
    if not name:
        return found[0]
    chosen = path / f"data_2d_h36m_{POINT_FILES[name]}.npz" if name in POINT_FILES else Path(name)
    if not chosen.is_file():
        have = ", ".join(f.name for f in found) or "none"
        raise FileNotFoundError(f"--keypoints-2d {name}: no file {chosen}; beside the poses: {have}")
    return chosen


def _3dhp(path: Path, splits: Sequence[str]) -> dict[str, Items]:
    folder = path if path.is_dir() else path.parent
    suffix = path.name.split("_3dhp", 1)[1] if path.is_file() else ".npz"
    out: dict[str, Items] = {s: [] for s in splits}
    if {"train", "validation"} & set(splits):
        clips = read_3dhp(folder / f"data_train_3dhp{suffix}", "train")
        held_out = sorted({c.subject for c in clips})[-1]
        out |= {
            "train": [c for c in clips if c.subject != held_out],
            "validation": [c for c in clips if c.subject == held_out],
        }
    test = folder / f"data_test_3dhp{suffix}"
    if "test" in splits and test.is_file():
        out["test"] = read_3dhp(test, "test")
    return {s: out[s] for s in splits}


def _motionbert(path: Path, splits: Sequence[str]) -> dict[str, Items]:
    out: dict[str, Items] = {}
    if path.is_file():  # the one file with the factors to millimetres
        out = {s: read_motionbert_file(path, "test" if s == "test" else "train") for s in {*splits} - {"validation"}}
        if "validation" in splits:
            whole = read_motionbert_file(path, "train")
            out |= {
                "train": [c for c in whole if c.subject != "S8"],
                "validation": [c for c in whole if c.subject == "S8"],
            }
        return {s: out[s] for s in splits}
    if {"train", "validation"} & set(splits):
        clips = read_motionbert_clips(path, "train")
        held_out = max(1, len(clips) // 20)
        out = {"train": clips[:-held_out], "validation": clips[-held_out:]}
    if "test" in splits:
        out["test"] = read_motionbert_clips(path, "test") if any(path.rglob("test/*.pkl")) else []
    return {s: out[s] for s in splits}
