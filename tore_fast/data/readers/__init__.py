"""Readers of the data sets people have, one file per format, all yielding the same Record.

`open_dataset("path")` tells the format by looking; or name one of FORMATS. Next on the way: sample.py (crops),
eval/protocols.py, train/. Licence-bound files are never fetched: where one is missing, a one-line MissingData says what
it is and whose.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from . import amass, freihand, threedpw, tsv
from .amass import AmassMotion, AmassReader
from .folder import FolderReader
from .freihand import FreiHandReader
from .hmr2_npz import Hmr2NpzReader
from .hmr2_tar import Hmr2TarReader
from .joint_sets import JOINT_SETS, to_j24
from .record import Camera, DataError, MissingData, Reader, Record
from .sample import evaluation_crop, training_sample
from .threedpw import ThreeDPWReader
from .tsv import TsvReader

__all__ = [
    "FORMATS",
    "JOINT_SETS",
    "AmassReader",
    "Camera",
    "DataError",
    "FolderReader",
    "FreiHandReader",
    "Hmr2NpzReader",
    "Hmr2TarReader",
    "MissingData",
    "AmassMotion",
    "Reader",
    "Record",
    "ThreeDPWReader",
    "TsvReader",
    "evaluation_crop",
    "open_dataset",
    "to_j24",
    "training_sample",
]

FORMATS: dict[str, type[Reader]] = {
    r.format: r
    for r in (TsvReader, Hmr2TarReader, Hmr2NpzReader, ThreeDPWReader, AmassReader, FreiHandReader, FolderReader)
}

_TSV_SETS = ("human3.6m", "h36m", "up3d", "muco", "mpii")  # sets that METRO's TSV files were made of


def open_dataset(path: str | Path, format: str | None = None, **options: Any) -> Reader:
    """Reader of a data set.

    Args:
        path: .yaml (TSV set), .tar / folder or pattern of tars, .npz (annotations or AMASS), .csv / .json / .jsonl, or
            the folder of 3DPW, FreiHAND or AMASS.
        format: one of FORMATS, where looking is not wanted.
        options: of the reader, e.g. split="test", images=FOLDER.

    Raises:
        MissingData: a file is not there. DataError: it is not what it should be. ValueError: unknown format.
    """
    name = format or guess_format(path)
    if name not in FORMATS:
        raise ValueError(f"open_dataset: format must be one of {', '.join(FORMATS)}, got {name!r}")
    try:
        reader: Any = FORMATS[name]
        return reader(path, **options)
    except TypeError as e:
        if "unexpected keyword" not in str(e):
            raise
        raise ValueError(f"open_dataset: {name} data has no option {str(e).rsplit(' ', 1)[-1]}") from None


def guess_format(path: str | Path) -> str:
    """Format of a path by its ending and, for folders and npz files, by what is inside."""
    text, path = str(path), Path(path)
    if text.endswith((".yaml", ".yml")):
        return "tsv"
    if text.endswith(".tar"):  # also a pattern
        return "tar"
    if path.suffix.lower() in (".csv", ".json", ".jsonl"):
        return "folder"
    if not path.exists():
        raise MissingData(f"{path}: no such file or folder{_source_by_name(path)}")
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return "npz" if "imgname.npy" in archive.namelist() else "amass"
        except zipfile.BadZipFile:
            raise DataError(f"{path}: not an npz") from None
    if path.is_dir():
        if (path / "sequenceFiles").is_dir():
            return "3dpw"
        if any((path / f"{s}_K.json").is_file() for s in ("training", "evaluation")):
            return "freihand"
        if next(path.rglob("*.tar"), None) is not None:
            return "tar"
        if next(path.rglob("*.npz"), None) is not None:
            return "amass"
    raise DataError(
        f"{path}: no known data set; expected a .yaml, .tar, .npz, .csv, .json, or a folder of 3DPW (sequenceFiles), "
        "FreiHAND (evaluation_K.json), tars or AMASS npz"
    )


def _source_by_name(path: Path) -> str:
    """Whose the data is that a missing path is called after."""
    name = path.name.lower().replace("-", "").replace("_", "")
    sources = {
        "3dpw": threedpw.SOURCE,
        "amass": amass.SOURCE,
        "freihand": freihand.SOURCE,
        **dict.fromkeys(_TSV_SETS, tsv.SOURCE),
    }
    return next((f". {source}" for word, source in sources.items() if word in name), "")
