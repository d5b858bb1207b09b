"""Bodies and hands: mesh hierarchies, joint regressors, linear blend skinning, joint tables.

`load_body("free")` works with nothing downloaded; `load_body("smpl", path)` reads an official model file you have a
licence for; `load_topology("smpl", folder)` reads only the public topology files. Callers: data/, train/, pipelines/.
"""

from __future__ import annotations

from pathlib import Path

from . import assets, joints
from .body import Body, BodyOutput, BodyTopology
from .decimate import decimate
from .hierarchy import MeshHierarchy, build_hierarchy
from .joints import project

__all__ = [
    "Body",
    "BodyOutput",
    "BodyTopology",
    "MeshHierarchy",
    "build_hierarchy",
    "decimate",
    "joints",
    "load_body",
    "project",
]

BODIES = ("free", "free_hand")


def load_body(name: str = "free", path: str | Path | None = None) -> Body:
    """A body by name.

    Args:
        name: "free" (6,890 vertices, 24 joints in SMPL order) or "free_hand" (right hand, 778 vertices, 16 joints in
            MANO order): shipped, licence-free.
        path: for the free bodies, another file baked by tools/bake_body.py.

    Raises:
        ValueError: unknown name.
    """
    if name not in BODIES:
        raise ValueError(f"load_body: name must be one of {', '.join(BODIES)}, got {name!r}")
    file = {"free": "free_body.npz", "free_hand": "free_hand.npz"}[name]
    return _free_body(name, Path(path) if path else assets.FOLDER / file)


def _free_body(name: str, path: Path) -> Body:
    data = assets.load(path)
    meta = data["meta"]
    return Body(
        BodyTopology(name, data["hierarchy"], data["regressors"]),
        template=data["template"], shape_dirs=data["shape_dirs"], weights=data["weights"], joints=data["joints"],
        joint_dirs=data["joint_dirs"], joint_names=meta["joints"], parents=meta["parents"], parts=data["parts"],
        part_names=meta["parts"],
    )  # fmt: skip
