"""AMASS motion files: `<data set>/<subject>/<motion>_poses.npz` with SMPL+H or SMPL-X poses.

In: one npz or a folder of them. Out: Records without images, one per frame (thinned to a wanted rate), or whole
motions. Axes are AMASS's own (z up); data/synth and train/ turn them where they pose a body.
"""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...io.safe_pickle import read_npz
from .record import DataError, Reader, Record, gender_name, plain_data, require

SOURCE = "AMASS is licensed for research: register at the AMASS page of MPI for Intelligent Systems"
BODY_NUMBERS = 66  # root and 21 body joints, the same in SMPL, SMPL+H and SMPL-X


class AmassMotion(NamedTuple):
    """One file, thinned to the reader's rate."""

    name: str
    pose: np.ndarray  # [T, 72] SMPL axis-angle; the two hand joints are zero
    betas: np.ndarray  # [10] of the file's own body model (SMPL+H), not SMPL's
    translation: np.ndarray  # [T, 3] metres
    hand_pose: np.ndarray | None  # [T, 90] fingers, left then right
    gender: str
    frames_per_s: float


class AmassReader(Reader):
    """Frames of AMASS motions.

    Args:
        path: an npz, or a folder searched for *.npz (shape.npz files, which hold no motion, are passed over).
        frames_per_s: wanted rate; every n-th frame is kept, so the result is the nearest rate not below it. None: all.
    """

    format = "amass"

    def __init__(self, path: str | Path, frames_per_s: float | None = None):
        path = Path(path)
        require(path, "an AMASS npz or a folder of them", SOURCE)
        self.root = path if path.is_dir() else path.parent
        files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
        self._wanted = frames_per_s
        self._files, starts = [], [0]
        for file in files:
            if len(files) > 1 and (file.stem == "shape" or file.stem.endswith("_stagei")):
                continue
            count = _frame_count(file)
            if count is None:
                if len(files) == 1:
                    raise DataError(f"{file}: no 'poses' [T, 156 or 165]; is this an AMASS motion?")
                continue
            self._files.append(file)
            starts.append(starts[-1] + -(-count // self._step(file)))
        if not self._files:
            raise DataError(f"{path}: no AMASS motion (an npz with 'poses' and 'trans') found")
        self._starts = np.array(starts)
        # one motion is read at a time and frames of one are mostly asked for together
        self._load = lru_cache(maxsize=4)(self._read)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_load"}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self._load = lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_motions(self) -> int:
        return len(self._files)

    def motion(self, index: int) -> AmassMotion:
        """The whole of file `index`."""
        return self._load(index)

    def _step(self, file: Path) -> int:
        return 1 if self._wanted is None else max(1, int(_rate(file) / self._wanted + 1e-6))

    def _read(self, index: int) -> AmassMotion:
        file = self._files[index]
        data = plain_data(read_npz, file)
        step, poses = self._step(file), np.asarray(data["poses"], np.float32)
        poses, shift = poses[::step], np.asarray(data["trans"], np.float32)[::step]
        if len(shift) != len(poses):
            raise DataError(f"{file}: poses has {len(poses)} frames, trans {len(shift)}")
        pose = np.zeros((len(poses), 72), np.float32)
        pose[:, :BODY_NUMBERS] = poses[:, :BODY_NUMBERS]
        return AmassMotion(
            file.relative_to(self.root).with_suffix("").as_posix(),
            pose,
            np.asarray(data.get("betas", np.zeros(10)), np.float32).ravel()[:10],
            shift,
            # SMPL+H: fingers follow the body; SMPL-X: jaw and eyes (9 numbers) lie between
            poses[:, -90:] if poses.shape[1] in (156, 165) else None,
            gender_name(data.get("gender", "")),
            _rate(file) / step,
        )

    def _motion_and_frame(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def place(self, index: int) -> tuple[str, int]:
        number, frame = self._motion_and_frame(index)
        return self._files[number].relative_to(self.root).with_suffix("").as_posix(), frame

    def _record(self, index: int) -> Record:
        number, frame = self._motion_and_frame(index)
        m = self._load(number)
        return Record(
            f"{m.name}/{frame}",
            pose=m.pose[frame],
            betas=m.betas,
            has_smpl=True,
            translation=m.translation[frame],
            gender=m.gender,
            sequence=m.name,
            frame=frame,
            extra={
                "frames_per_s": m.frames_per_s,
                **({} if m.hand_pose is None else {"hand_pose": m.hand_pose[frame]}),
            },
        )


def _frame_count(file: Path) -> int | None:
    """Frames of a motion from the header of `poses` (no array is read); None where the file is not a motion."""
    try:
        with zipfile.ZipFile(file) as archive:
            if not {"poses.npy", "trans.npy"} <= set(archive.namelist()):
                return None
            with archive.open("poses.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, _ = read(member)
    except (zipfile.BadZipFile, ValueError) as e:
        raise DataError(f"{file}: not an npz ({e})") from None
    return int(shape[0]) if len(shape) == 2 and shape[1] >= BODY_NUMBERS else None


@lru_cache(maxsize=100_000)
def _rate(file: Path) -> float:
    with zipfile.ZipFile(file) as archive:
        for key in ("mocap_framerate", "mocap_frame_rate"):
            if f"{key}.npy" in archive.namelist():
                with archive.open(f"{key}.npy") as member:
                    return float(np.lib.format.read_array(member, allow_pickle=False))
    raise DataError(f"{file}: no mocap_framerate")
