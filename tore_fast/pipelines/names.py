"""One rule for the names of results, for every verb: decided before the first file is written, no two results share a
file.

The name of an input is its stem. Where that would meet another result (`a.jpg a.png`, `a/x.jpg b/x.jpg`, `img_1.jpg`
beside the people of `img.jpg`), it is stem_suffix (`a_png`), else stem_2, stem_3 ... `OUT/results.json` says which name
belongs to which file, also over several runs into one folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..io.atomic import write_bytes

INDEX = "results.json"
_DERIVED = re.compile(r"^(.+?)_(\d+|overlay|scene|tokens)$")  # files of one input: NAME_0.glb, NAME_overlay.png ...
_LONGEST = 180  # bytes of a name; file systems allow 255 with everything that is added


def output_names(sources: Sequence[str | Path], out: str | Path, suffixes: Sequence[str] = ()) -> list[str]:
    """A name per source for its results in `out`.

    Args:
        sources: the input files, each once.
        out: folder of the results. Names that its index gives to other sources stay theirs; a source keeps its own.
        suffixes: of the files that will be written (".npz"); an input that lies in `out` is never overwritten.
    """
    out = Path(out)
    keys = [os.path.abspath(s) for s in sources]
    known = {e["source"]: e["name"] for e in read_index(out)}
    inputs = set(keys)
    taken, parents = set[str](), set[str]()  # names, and what they are derived from

    def take(name: str) -> None:
        taken.add(name.casefold())  # some file systems do not tell A from a
        if found := _DERIVED.match(name.casefold()):
            parents.add(found[1])

    def free(name: str) -> bool:
        low = name.casefold()
        found = _DERIVED.match(low)
        if low in taken or low in parents or (found and found[1] in taken):
            return False
        made = [out / name, *(out / f"{n}{s}" for n in (name, f"{name}_overlay", f"{name}_tokens") for s in suffixes)]
        return not any(os.path.abspath(p) in inputs for p in made)

    for name in known.values():
        take(name)
    names = []
    for key in keys:
        if key in known:
            names.append(known[key])
            continue
        name = next(n for n in _candidates(Path(key)) if free(n))
        take(name)
        names.append(name)
    return names


def _candidates(path: Path) -> Iterator[str]:
    stem, suffix = _short(path.stem) or "result", path.suffix[1:]
    yield stem
    if suffix:
        yield f"{stem}_{suffix}"
    number = 2
    while True:
        yield f"{stem}_{number}"
        yield f"{stem}_{suffix}_no{number}"  # where the numbers belong to the people of an image
        number += 1


def _short(stem: str) -> str:
    return os.fsdecode(os.fsencode(stem)[:_LONGEST])


def read_index(out: str | Path) -> list[dict]:
    """Entries of `out`/results.json: {"name", "source", "files", ...}; [] where there is none.

    Raises:
        ValueError: a file of that name that is not such an index.
    """
    path = Path(out) / INDEX
    if not path.is_file():
        return []
    try:
        items = json.loads(path.read_text())["items"]
        assert all(isinstance(e["name"], str) and isinstance(e["source"], str) for e in items)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: expected the index of earlier results; give another output folder") from None
    return items


def write_index(out: str | Path, entries: Sequence[dict], facts: dict | None = None) -> Path:
    """Adds `entries` to the index (a source's earlier entry is replaced) and returns its path.

    Args:
        entries: {"name", "source", "files" (names in `out`), "error" or counts ...}.
        facts: of this run (verb, model ...), beside the list.
    """
    path = Path(out) / INDEX
    merged = {e["source"]: e for e in read_index(out)}
    for entry in entries:
        key = os.path.abspath(entry["source"])
        merged[key] = {**entry, "source": key}
    data = {**(facts or {}), "items": sorted(merged.values(), key=lambda e: e["source"])}
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())  # ASCII: file names of any bytes survive
    return path
