"""Results of predict (images and videos) and lift on disk -> scenes for the viewers of vis/.

In: the output folder, its results.json, an npz, or a GLB of still meshes. Out: vis.scene.ResultScene. Nothing runs but
the body model of a video's parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.image import ImageError, read_image
from ..io.video import VIDEO_EXTENSIONS, open_video
from ..vis.overlay import PALETTE
from ..vis.scene import Actor, ResultScene, SceneCamera
from .names import INDEX, read_index

DISTANCE = 4.0  # metres from the camera at which lifted poses are shown: they have no place of their own
PIECE = 256  # frames posed at once


def read_scenes(path: str | Path, body: str | None = None) -> list[ResultScene]:
    """The scenes of an output folder (one an input), its results.json, or of one result file.

    Args:
        body: of a video's SMPL parameters, where the file's own name of it is not enough: a SMPL model file.

    Raises:
        ValueError: nothing that can be shown, or a file of another kind. FileNotFoundError: no such path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.name == INDEX:
        path = path.parent
    if not path.is_dir():
        return [read_scene([path], path.stem, _listed_source(path), body)]
    scenes: list[ResultScene] = []
    for entry in read_index(path):
        files = [path / f for f in entry.get("files", []) if (path / f).is_file()]
        shown = [f for f in files if f.suffix == ".npz"] or _meshes(files)
        for group in _groups(shown, entry):
            title = entry["name"] if len(group) == len(shown) else group[0].stem
            scenes.append(replace(read_scene(group, title, entry["source"], body), files=tuple(files)))
    if not scenes:
        found = sorted(path.glob("*.npz")) or sorted(path.glob("track_*.npz")) or _meshes(sorted(path.glob("*.glb")))
        if not found:
            raise ValueError(
                f"{path}: no results that can be shown; expected {INDEX}, npz or glb files of predict or lift"
            )
        tracks = all(f.stem.startswith("track_") for f in found)
        scenes = [read_scene(g, path.name, None, body) for g in ([found] if tracks else [[f] for f in found])]
    return scenes


def _listed_source(path: Path) -> str | None:
    """Source of a result file, from the index beside it."""
    for entry in read_index(path.parent):
        if path.name in entry.get("files", []):
            return entry["source"]
    return None


def image_scene(arrays: dict[str, np.ndarray], pixels: np.ndarray, title: str) -> ResultScene:
    """The scene of one image from the arrays of its npz (results.npz_arrays) and its pixels [H, W, 3]."""
    people = [replace(p, colour=PALETTE[i % len(PALETTE)]) for i, p in enumerate(_image_people(arrays))]
    return ResultScene(title, tuple(people), _camera(arrays), lambda frame: pixels)


def _meshes(files: Sequence[Path]) -> list[Path]:
    """The GLB files, one of each person (the joined scene of several people is left out)."""
    return [f for f in files if f.suffix == ".glb" and not f.stem.endswith("_scene")]


def _groups(files: list[Path], entry: dict) -> Iterator[list[Path]]:
    """Files of one input that belong in one scene: all, but for several lifted people, who have no common place."""
    if "clips" in entry:
        yield from ([f] for f in files)
    elif files:
        yield files


def read_scene(files: Sequence[Path], title: str, source: str | None = None, body: str | None = None) -> ResultScene:
    """One scene of the files of one input."""
    people: list[Actor] = []
    camera, fps, found = None, 25.0, source
    for path in files:
        if path.suffix == ".glb":
            people += _glb_people(path)
            continue
        if path.suffix != ".npz":
            raise ValueError(f"{path}: expected an npz or a glb of predict or lift, got {path.suffix or 'no suffix'}")
        arrays = _arrays(path)
        found = found or str(arrays["source"]) if arrays["source"].ndim == 0 else found
        fps = float(arrays.get("mocap_framerate", fps))
        if camera is None:
            camera = _camera(arrays)
        people += _track(arrays, path, body) if "frame" in arrays else _image_people(arrays)
    people = [replace(p, colour=PALETTE[i % len(PALETTE)]) for i, p in enumerate(people)]
    first = min((int(p.frames[0]) for p in people), default=0)
    last = max((int(p.frames[-1]) for p in people), default=0)
    return ResultScene(title, tuple(people), camera, _images(found, camera), first, last - first + 1, fps, tuple(files))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {k: data[k] for k in data.files}
    except (ValueError, OSError, EOFError, KeyError) as e:
        raise ValueError(f"{path}: not a readable npz: {e}") from None
    except Exception as e:  # noqa: BLE001 (zipfile and zlib have errors of their own)
        raise ValueError(f"{path}: not a readable npz ({type(e).__name__}: {e})") from None
    for key in ("joints_3d", "joint_names", "source"):
        if key not in arrays:
            raise ValueError(f"{path}: expected an npz of predict or lift; it has no {key!r} (docs/results.md)")
    if "image_index" in arrays:
        raise ValueError(f"{path}: a unit of `tore-fast batch`; images and clips of predict and lift can be shown")
    joints = arrays["joints_3d"]
    if joints.ndim != 3 or joints.shape[1:] != (arrays["joint_names"].size, 3):
        raise ValueError(f"{path}: joints_3d must be [N, J, 3] with J joint_names, got {list(joints.shape)}")
    return arrays


def _camera(arrays: dict[str, np.ndarray]) -> SceneCamera | None:
    if "focal_px" not in arrays or "image_size" not in arrays or not arrays["focal_px"].size:
        return None
    width, height = (int(v) for v in arrays["image_size"])
    principal = arrays["principal_px"].reshape(-1, 2)[0]
    focal = float(arrays["focal_px"].reshape(-1)[0])
    return SceneCamera((width, height), focal, (float(principal[0]), float(principal[1])))


def _names(arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(str(n) for n in arrays["joint_names"])


def _image_people(arrays: dict[str, np.ndarray]) -> Iterator[Actor]:
    if not len(arrays["joints_3d"]):
        return
    trans = arrays["trans"][:, None].astype(np.float32)
    joints = arrays["joints_3d"] + trans
    vertices = arrays["vertices"] + trans if "vertices" in arrays else None
    for i in range(len(joints)):
        faint = bool(not arrays["believed"][i]) if "believed" in arrays else False
        mesh = None if vertices is None else vertices[i : i + 1]
        yield Actor(f"person {i}", np.array([0]), joints[i : i + 1], _names(arrays), mesh, arrays.get("faces"), faint)


def _track(arrays: dict[str, np.ndarray], path: Path, body: str | None) -> Iterator[Actor]:
    frames, joints = arrays["frame"].astype(np.int64), arrays["joints_3d"].astype(np.float32)
    if not len(frames):
        return
    vertices, faces = arrays.get("vertices"), arrays.get("faces")
    if "trans" not in arrays:  # lifted
        joints = joints + np.array([0, 0, DISTANCE], np.float32)
    else:
        trans = arrays["trans"][:, None].astype(np.float32)
        joints = joints + trans
        if vertices is not None:
            vertices = vertices + trans
        elif "poses" in arrays:
            vertices, faces = _posed(arrays, path, body)
            vertices = vertices + trans
    track = str(arrays.get("track", ""))
    yield Actor(f"track {track}" if track else "person", frames, joints, _names(arrays), vertices, faces)


@torch.inference_mode()
def _posed(arrays: dict[str, np.ndarray], path: Path, body: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [T, V, 3] of a video's SMPL parameters around the body's origin, and faces."""
    from ..body import load_body

    name = str(arrays.get("body", "free"))
    try:
        model = load_body(name, body if name != "free" else None)
    except (ValueError, OSError) as e:
        raise ValueError(f"{path}: its body {name!r} is needed: give the SMPL model file (--body): {e}") from None
    betas = torch.from_numpy(np.atleast_2d(arrays["betas"]).astype(np.float32))[:, : model.num_betas]
    poses = torch.from_numpy(arrays["poses"].astype(np.float32))
    parts = []
    for a in range(0, len(poses), PIECE):
        shape = betas[a : a + PIECE] if len(betas) > 1 else betas.expand(len(poses[a : a + PIECE]), -1)
        parts.append(model(poses[a : a + PIECE], shape).vertices.numpy())
    return np.concatenate(parts), np.asarray(model.faces(0))


def _glb_people(path: Path) -> Iterator[Actor]:
    """Still meshes of a GLB, back in camera axes. Animated ones need their npz."""
    import trimesh

    try:
        loaded: Any = trimesh.load(path, file_type="glb", process=False)
    except Exception as e:  # noqa: BLE001 (any parser error)
        raise ValueError(f"{path}: not a readable GLB ({type(e).__name__}: {e})") from None
    facts: dict[str, Any] = loaded.metadata.get("extras") or loaded.metadata
    place = np.asarray(facts.get("trans", [[0.0, 0.0, DISTANCE]]), np.float64).reshape(-1, 3)[0]
    for name, mesh in loaded.geometry.items():
        points = (np.asarray(mesh.vertices) * (1, -1, -1) + place).astype(np.float32)
        yield Actor(str(name), np.array([0]), points[None, :0], (), points[None], np.asarray(mesh.faces, np.int32))


def _images(source: str | None, camera: SceneCamera | None) -> Callable[[int], np.ndarray | None]:
    """Frame number -> pixels of the photograph or video, None where it is not there any more."""
    if source is None or camera is None or not Path(source).exists():
        return lambda frame: None
    path = Path(source)
    if path.is_dir() or path.suffix.lower() in VIDEO_EXTENSIONS:
        return _VideoFrames(path)

    @functools.lru_cache(1)
    def pixels() -> np.ndarray | None:
        try:
            found = read_image(path)
        except ImageError:
            return None
        return found if found.shape[1::-1] == camera.size else None  # another image lies there now

    return lambda frame: pixels()


class _VideoFrames:
    """Frames of a video in any order; the neighbours of the last one are cheap."""

    def __init__(self, path: Path):
        self._frames: Iterator[Any] = iter(())
        self.path, self._next = path, -1
        self._last: np.ndarray | None = None

    def __call__(self, frame: int) -> np.ndarray | None:
        try:
            if frame == self._next - 1:
                return self._last
            if not self._next <= frame < self._next + 30:
                self._frames, self._next = open_video(self.path).frames(frame), frame
            while self._next <= frame:
                _, self._last = next(self._frames)
                self._next += 1
        except (StopIteration, ValueError, OSError):
            self._next, self._last = -1, None
        return self._last
