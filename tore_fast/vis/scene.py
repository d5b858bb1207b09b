"""What a viewer shows: people over time in one camera's axes, and the photograph that they were seen in.

Made by pipelines/scenes.py from result files; shown by viewer.py (browser, viser) and page.py (one HTML file).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..geometry.skeleton import BLAZEPOSE33, COCO17, H36M17, HAND21, J14, MANO16, SMPL24
from .overlay import PALETTE

_SKELETONS = {s.names: s for s in (SMPL24, J14, H36M17, HAND21, MANO16, COCO17, BLAZEPOSE33)}


@dataclass(frozen=True)
class SceneCamera:
    """A pinhole camera at the origin that looks along z; x right, y down.

    Args:
        size: width, height of its image in pixels. focal, principal: pixels.
    """

    size: tuple[int, int]
    focal: float
    principal: tuple[float, float]

    def corners(self, depth: float) -> np.ndarray:  # [4, 3]
        """The image's corners as points at `depth` metres: top left, top right, bottom right, bottom left."""
        width, height = self.size
        pixels = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
        rays = (pixels - self.principal) / self.focal
        return np.concatenate([rays, np.ones((4, 1))], 1) * depth


@dataclass(frozen=True)
class Actor:
    """One person over time.

    Args:
        frames: [T] rising frame numbers of the scene at which the person is there.
        joints: [T, J, 3] metres, camera axes. joint_names: J.
        vertices: [T, V, 3] metres, or None. faces: [F, 3].
        faint: drawn transparent: the body is not believed.
    """

    name: str
    frames: np.ndarray
    joints: np.ndarray
    joint_names: tuple[str, ...]
    vertices: np.ndarray | None = None
    faces: np.ndarray | None = None
    faint: bool = False
    colour: tuple[int, int, int] = PALETTE[0]

    def row(self, frame: int) -> int | None:
        """Row of a frame, or None where the person is not there."""
        k = int(np.searchsorted(self.frames, frame))
        return k if k < len(self.frames) and self.frames[k] == frame else None

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) rows of the joints; none for a joint set that has no tree."""
        skeleton = _SKELETONS.get(self.joint_names)
        return skeleton.bones if skeleton is not None else ()


@dataclass(frozen=True)
class ResultScene:
    """Everybody in one image or clip.

    Args:
        camera: of the photograph, or None (lifted poses have none).
        image: frame number -> [H, W, 3] uint8, or None where there is none.
        frames: frames of the scene; 1 for a photograph. fps: of a clip.
        files: the result files, for downloading.
    """

    title: str
    people: tuple[Actor, ...]
    camera: SceneCamera | None = None
    image: Callable[[int], np.ndarray | None] = lambda frame: None
    first: int = 0
    frames: int = 1
    fps: float = 25.0
    files: tuple[Path, ...] = field(default=())

    @property
    def middle(self) -> np.ndarray:  # [3]
        """Middle of all joints of all frames, metres."""
        if not self.people:
            return np.array([0.0, 0.0, 3.0])
        return np.mean([p.joints.reshape(-1, 3).mean(0) for p in self.people], 0)

    @property
    def depth(self) -> float:
        """Distance of the photograph's plane: just behind the farthest point."""
        far = [np.max(p.joints[..., 2] if p.vertices is None else p.vertices[..., 2]) for p in self.people]
        return float(max([*far, 0.5])) * 1.1

    def view(self) -> SceneCamera:
        """The photograph's camera; without one, a camera that sees everybody from the front."""
        if self.camera is not None:
            return self.camera
        return SceneCamera((640, 640), 640.0, (320.0, 320.0))
