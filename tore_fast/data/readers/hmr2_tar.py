"""Webdataset tars of 4D-Humans (and HaMeR): `KEY.jpg` beside `KEY.data.pyd`, a pickled list with one dict per person.

In: a tar, a folder of tars, a glob or `{000000..000012}.tar`. Out: one Record per person, body44 joints (hand21 for
HaMeR). The pickles are read as plain data; anything else in them is refused. No webdataset package is needed.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...io.image import read_image
from ...io.safe_pickle import loads
from .joint_sets import set_of
from .record import DataError, Reader, Record, float_array, gender_name, plain_data, require

SOURCE = (
    "The training tars are published by the 4D-Humans project (HaMeR's by HaMeR); the images keep their data sets' "
    "licences"
)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")


class Member(NamedTuple):
    """Where a file lies in its tar."""

    tar: int
    offset: int
    size: int


def expand_tars(source: str | Path) -> list[Path]:
    """Tar files of a path, folder, glob or `{first..last}` range, in order.

    Raises:
        MissingData: one is not there. DataError: a folder or pattern without tars.
    """
    text = str(source)
    ranged = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if ranged:
        first, last = ranged.groups()
        paths = [Path(text.replace(ranged.group(), str(i).zfill(len(first)))) for i in range(int(first), int(last) + 1)]
    elif Path(text).is_dir():
        paths = sorted(Path(text).rglob("*.tar"))
    elif any(c in text for c in "*?[") and not Path(text).exists():
        paths = sorted(map(Path, glob.glob(text, recursive=True)))
    else:
        paths = [Path(text)]
    if not paths:
        raise DataError(f"{source}: no .tar found")
    for path in paths:
        require(path, "a webdataset tar", SOURCE)
    return paths


def split_key(name: str) -> tuple[str, str]:
    """Webdataset's key and extension: the base name is cut at its first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def tar_samples(paths: list[Path]) -> list[tuple[str, dict[str, Member]]]:
    """Key and members by extension of each sample, in the order of the tars. Reads headers only."""
    samples: list[tuple[str, dict[str, Member]]] = []
    for number, path in enumerate(paths):
        found: dict[str, dict[str, Member]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for info in tar:
                    if info.isfile():
                        key, extension = split_key(info.name)
                        found.setdefault(key, {})[extension] = Member(number, info.offset_data, info.size)
        except tarfile.TarError as e:
            raise DataError(f"{path}: not an (uncompressed) tar, or cut short ({e})") from None
        samples += found.items()
    return samples


class TarFiles:
    """Byte ranges of tars, opened once per process."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self._files: dict[int, Any] = {}
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def read(self, member: Member) -> bytes:
        if self._pid != os.getpid():
            self._files, self._pid = {}, os.getpid()
        if member.tar not in self._files:
            if len(self._files) > 64:  # thousands of shards must not exhaust the file handles
                self._files.pop(next(iter(self._files))).close()
            self._files[member.tar] = open(self.paths[member.tar], "rb")
        file = self._files[member.tar]
        file.seek(member.offset)
        data = file.read(max(0, min(member.size, os.fstat(file.fileno()).st_size - member.offset)))
        if len(data) != member.size:
            raise DataError(f"{self.paths[member.tar]}: cut short at byte {member.offset}")
        return data


class Hmr2TarReader(Reader):
    """People in 4D-Humans-style tars. Opening reads every label once (images are not touched).

    Args:
        source: see expand_tars.
    """

    format = "tar"

    def __init__(self, source: str | Path):
        paths = expand_tars(source)
        self.root = paths[0].parent
        self._tars = TarFiles(paths)
        self._samples = [(key, m) for key, m in tar_samples(paths) if "data.pyd" in m and _image_member(m)]
        if not self._samples:
            raise DataError(f"{source}: no sample with a image and a data.pyd")
        # (sample, person)
        self._people = [(s, p) for s in range(len(self._samples)) for p in range(len(self._labels(s)))]

    def __len__(self) -> int:
        return len(self._people)

    def _labels(self, sample: int) -> list[dict]:
        key, members = self._samples[sample]
        what = f"{self._tars.paths[members['data.pyd'].tar]}: {key}.data.pyd"
        value = plain_data(loads, self._tars.read(members["data.pyd"]), what)
        people = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(p, dict) for p in people):
            raise DataError(f"{what}: expected a list of dicts, one per person")
        return list(people)

    def _image(self, sample: int) -> np.ndarray:
        key, members = self._samples[sample]
        member = _image_member(members)
        assert member is not None  # samples without an image are left out
        return read_image(self._tars.read(member), key, upright=False)

    def _record(self, index: int) -> Record:
        sample, person = self._people[index]
        key, _ = self._samples[sample]
        people = self._labels(sample)
        name = f"{key}_{person}" if len(people) > 1 else key
        return person_record(name, partial(self._image, sample), people[person], key)


def _image_member(members: dict[str, Member]) -> Member | None:
    return next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)


def person_record(name: str, opener: Any, data: dict, what: str) -> Record:
    """Record of one dict with 4D-Humans' keys; `scale` is width and height of the box over 200 pixels."""
    for key in ("center", "scale"):
        if key not in data:
            raise DataError(f"{what}: the label lacks {key!r}; it has {', '.join(sorted(map(str, data)))}")
    scale = np.ravel(np.asarray(data["scale"], np.float64))
    size = 200.0 * (np.repeat(scale, 2) if scale.size == 1 else scale[:2])
    hand = "hand_pose" in data
    pose, betas = data.get("hand_pose" if hand else "body_pose"), data.get("betas")
    has_pose = pose is not None and _true(data.get("has_hand_pose" if hand else "has_body_pose", 1))
    has_betas = betas is not None and _true(data.get("has_betas", 1))
    points_2d = _points(data.get("keypoints_2d"), 3, f"{what}: keypoints_2d")
    points_3d = _points(data.get("keypoints_3d"), 4, f"{what}: keypoints_3d")
    return Record(
        name,
        opener,
        center=np.ravel(np.asarray(data["center"], np.float64))[:2],
        scale=float(size.max()) / 200.0,
        box_size=size,
        keypoints_2d=points_2d,
        keypoints_2d_set="" if points_2d is None else set_of(len(points_2d)),
        keypoints_3d=points_3d,
        keypoints_3d_set="" if points_3d is None else set_of(len(points_3d)),
        pose=None if pose is None else float_array(np.ravel(pose), (48 if hand else 72,), f"{what}: pose"),
        betas=None if betas is None else float_array(np.ravel(betas)[:10], (10,), f"{what}: betas"),
        has_smpl=has_pose and has_betas,
        gender=gender_name(data.get("gender", "")),
        extra={
            "has_pose": has_pose,
            "has_betas": has_betas,
            **({"right": _true(data["right"])} if "right" in data else {}),
        },
    )


def _points(value: Any, columns: int, what: str) -> np.ndarray | None:
    return None if value is None else float_array(value, (None, columns), what)


def _true(value: Any) -> bool:
    return bool(np.asarray(value, np.float64).any())
