"""Bodies and hands: mesh hierarchies, joint regressors, linear blend skinning.

`load_body("free")` works with nothing downloaded; `load_body("smpl", path)` reads an official model file you
have a licence for; `load_topology("smpl", folder)` reads only the public topology files. Callers: data/,
train/, pipelines/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import assets
from .body import Body, BodyOutput, BodyTopology
from .decimate import decimate
from .hierarchy import MeshHierarchy, build_hierarchy
from .official import load_model, load_topology
from .smplx_objects import body_from_smplx

__all__ = [
    "Body",
    "BodyOutput",
    "BodyTopology",
    "MeshHierarchy",
    "body_from_smplx",
    "build_hierarchy",
    "decimate",
    "load_body",
    "load_topology",
]

_FREE = {"free": "free_body.npz", "free_hand": "free_hand.npz"}
BODIES = (*_FREE, "smpl", "mano")


def load_body(name: Any = "free", path: str | Path | None = None, **options: Any) -> Body:
    """A body by name.

    Args:
        name: "free" (6,890 vertices, 24 joints in SMPL order) or "free_hand" (right hand, 778 vertices, 16
            joints in MANO order): shipped, licence-free. "smpl" or "mano": from a model file of yours. Or an SMPL,
            SMPL-H or MANO object of the package smplx, see `body_from_smplx`.
        path: for "smpl" and "mano" the official .pkl or .npz, or its folder; for the free ones another file
            baked by tools/bake/body.py.
        options: for "smpl" and "mano" as official.load_model: topology, num_betas, flat_hand_mean.

    Raises:
        ValueError: unknown name, missing path, a file of the wrong kind. FileNotFoundError: no such file.
        TypeError: an option the body does not have.

    Example:
        >>> load_body("free").hierarchy.counts
        (6890, 1723, 431)
    """
    if not isinstance(name, str):
        if path is not None:
            raise TypeError("load_body: an smplx object takes no path")
        return body_from_smplx(name, **options)
    if name in _FREE:
        if options:
            raise TypeError(f"load_body({name!r}): no option {', '.join(options)}")
        return _free_body(name, Path(path) if path else assets.FOLDER / _FREE[name])
    if name not in BODIES:
        raise ValueError(f"load_body: name must be one of {', '.join(BODIES)}, got {name!r}")
    if path is None:
        raise ValueError(
            f"load_body({name!r}): {name.upper()} is licensed and not shipped: register at its site and give "
            'the model file as path, or use "free" / "free_hand"'
        )
    return load_model(name, path, **options)


def _free_body(name: str, path: Path) -> Body:
    data = assets.load(path)
    meta = data["meta"]
    return Body(
        BodyTopology(name, data["hierarchy"], data["regressors"]),
        joint_names=meta["joints"],
        parents=meta["parents"],
        part_names=meta["parts"],
        **{key: data[key] for key in ("template", "shape_dirs", "weights", "joints", "joint_dirs", "parts")},
    )
