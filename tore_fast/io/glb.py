"""One GLB with a skinned, animated body: opens in Blender, three.js and model viewers without a plug-in.

In: rest vertices, skin weights, joints and rotations per frame of pipelines/video.py (camera axes); out: metres,
y up. A frame costs 24 x 16 bytes, so minutes of video stay small; rotations are spooled to disk until `close`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..geometry.camera import CAMERA_TO_Y_UP
from .atomic import PendingFile, replacing

_FLOAT, _U8, _U32 = 5126, 5121, 5125
_ARRAY, _INDEX = 34962, 34963


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals [V, 3]."""
    corners = vertices[faces]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    count = len(vertices)
    rows = faces.T.reshape(-1)
    out = np.stack([np.bincount(rows, np.tile(face[:, k], 3), count) for k in range(3)], 1).astype(vertices.dtype)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def quaternions(rotations: np.ndarray) -> np.ndarray:  # [..., 3, 3] -> [..., 4] (x, y, z, w)
    """glTF order, float32, w >= 0."""
    from scipy.spatial.transform import Rotation  # slow to import

    q = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat(canonical=True)
    return q.reshape(*rotations.shape[:-2], 4).astype(np.float32)


def mesh_glb(
    meshes: Sequence[np.ndarray],  # [V, 3] each, y up
    faces: np.ndarray,  # [F, 3]
    colour: Sequence[int],  # RGBA 0..255
    facts: dict | None = None,
) -> bytes:
    """A GLB of still meshes with normals and one colour: nodes person_0, person_1 ... of a scene with `facts` as
    extras."""
    index = np.ascontiguousarray(faces, "<u4").reshape(-1)
    blocks: list[tuple[np.ndarray, int, str, int]] = [(index, _U32, "SCALAR", _INDEX)]
    for points in meshes:
        shared = np.asarray(points, np.float64)
        blocks += [
            (shared.astype("<f4"), _FLOAT, "VEC3", _ARRAY),
            (vertex_normals(shared, faces).astype("<f4"), _FLOAT, "VEC3", _ARRAY),
            (np.tile(np.asarray(colour, np.uint8), (len(points), 1)), _U8, "VEC4", _ARRAY),
        ]
    views: list[dict] = []
    accessors: list[dict] = []
    offset = 0
    for array, kind, shape, target in blocks:
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": target})
        entry: dict = {"bufferView": len(views) - 1, "componentType": kind, "type": shape, "count": len(array)}
        if shape == "VEC3" and len(accessors) % 3 == 1:  # the format wants bounds of positions
            entry["min"], entry["max"] = array.min(0).tolist(), array.max(0).tolist()
        if kind == _U8:
            entry["normalized"] = True
        accessors.append(entry)
        offset += array.nbytes  # all are multiples of 4
    count = len(meshes)
    parts = [{"POSITION": 3 * i + 1, "NORMAL": 3 * i + 2, "COLOR_0": 3 * i + 3} for i in range(count)]
    scene: dict = {"nodes": list(range(count)), **({"extras": facts} if facts else {})}
    data = json.dumps(
        {
            "asset": {"version": "2.0", "generator": "tore_fast"},
            "scene": 0,
            "scenes": [scene],
            "nodes": [{"name": f"person_{i}", "mesh": i} for i in range(count)],
            "meshes": [
                {"name": f"person_{i}", "primitives": [{"attributes": p, "indices": 0}]} for i, p in enumerate(parts)
            ],
            "bufferViews": views,
            "accessors": accessors,
            "buffers": [{"byteLength": offset}],
        },
        separators=(",", ":"),
    ).encode()
    data += b" " * (-len(data) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(data) + 8 + offset) + struct.pack("<I4s", len(data), b"JSON")
    return b"".join([head, data, struct.pack("<I4s", offset, b"BIN\0"), *(a.tobytes() for a, *_ in blocks)])


class GlbAnimation:
    """Streams frames, then writes the file.

    Args:
        vertices [V, 3], faces [F, 3], joints [J, 3]: rest pose, metres, y up. weights [V, J]: skin weights.
        parents, names: per joint. num_frames, fps: of the clip. Pose correctives cannot be expressed and are left out.
    """

    def __init__(
        self,
        path: str | Path,
        vertices: np.ndarray,
        faces: np.ndarray,
        weights: np.ndarray,
        joints: np.ndarray,
        parents: Sequence[int],
        names: Sequence[str],
        num_frames: int,
        fps: float,
    ):
        self.path, self.num_frames, self.fps, self.written = Path(path), num_frames, fps, 0
        self.vertices, self.faces = np.asarray(vertices, np.float32), np.asarray(faces, np.uint32)
        self.weights, self.joints = np.asarray(weights, np.float32), np.asarray(joints, np.float32)
        self.parents, self.names = tuple(int(p) for p in parents), tuple(names)
        self._spool = PendingFile(self.path.with_suffix(".frames")).part
        shape = (len(self.parents), num_frames, 4)
        self._quats = np.memmap(self._spool, np.float32, "w+", shape=shape)
        self._places = np.zeros((num_frames, 3), np.float32)

    def write(self, rotations: np.ndarray, root_positions: np.ndarray) -> None:
        """Frames [F, J, 3, 3] and root joint positions [F, 3], both in camera axes."""
        rotations = np.array(rotations, np.float64)
        rotations[:, 0] = CAMERA_TO_Y_UP @ rotations[:, 0]
        end = self.written + len(rotations)
        self._quats[:, self.written : end] = quaternions(rotations).transpose(1, 0, 2)
        self._places[self.written : end] = np.asarray(root_positions) @ CAMERA_TO_Y_UP.T
        self.written = end

    def close(self) -> None:
        try:
            if self.written != self.num_frames:
                raise ValueError(f"GlbAnimation: promised {self.num_frames} frames, wrote {self.written}")
            self._quats.flush()
            self._write_file()
        finally:
            del self._quats
            self._spool.unlink(missing_ok=True)

    def _write_file(self) -> None:
        top = np.argsort(-self.weights, axis=1, kind="stable")[:, :4]
        share = np.take_along_axis(self.weights, top, 1)
        share = share / share.sum(1, keepdims=True)
        binds = np.tile(np.eye(4, dtype=np.float32), (len(self.parents), 1, 1))
        binds[:, :3, 3] = -self.joints
        times = (np.arange(self.num_frames) / self.fps).astype(np.float32)
        blocks: list[tuple[np.ndarray, int, str, int | None]] = [
            (self.vertices, _FLOAT, "VEC3", _ARRAY),
            (vertex_normals(self.vertices, self.faces).astype(np.float32), _FLOAT, "VEC3", _ARRAY),
            (top.astype(np.uint8), _U8, "VEC4", _ARRAY),
            (share.astype(np.float32), _FLOAT, "VEC4", _ARRAY),
            (self.faces.reshape(-1), _U32, "SCALAR", _INDEX),
            (binds.transpose(0, 2, 1).copy(), _FLOAT, "MAT4", None),
            (times, _FLOAT, "SCALAR", None),
            (self._places, _FLOAT, "VEC3", None),
        ]
        blocks += [(self._quats[j], _FLOAT, "VEC4", None) for j in range(len(self.parents))]
        views: list[dict] = []
        accessors: list[dict] = []
        offset = 0
        for array, kind, shape, target in blocks:
            views.append(
                {
                    "buffer": 0,
                    "byteOffset": offset,
                    "byteLength": array.nbytes,
                    **({"target": target} if target else {}),
                }
            )
            entry = {"bufferView": len(views) - 1, "componentType": kind, "type": shape}
            entry["count"] = array.size if shape == "SCALAR" else len(array)
            if len(accessors) in (0, 6):  # the format wants bounds of positions and of animation times
                flat = array.reshape(len(array), -1)
                entry["min"], entry["max"] = flat.min(0).tolist(), flat.max(0).tolist()
            accessors.append(entry)
            offset += -(-array.nbytes // 4) * 4
        data = json.dumps(self._scene(views, accessors, offset), separators=(",", ":")).encode()
        data += b" " * (-len(data) % 4)
        with replacing(self.path) as part, open(part, "wb") as f:
            f.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(data) + 8 + offset))
            f.write(struct.pack("<I4s", len(data), b"JSON") + data)
            f.write(struct.pack("<I4s", offset, b"BIN\0"))
            for array, *_ in blocks:
                for first in range(0, max(len(array), 1), 65536):
                    f.write(np.ascontiguousarray(array[first : first + 65536]).tobytes())
                f.write(b"\0" * (-array.nbytes % 4))

    def _scene(self, views: list, accessors: list, size: int) -> dict:
        count = len(self.parents)
        nodes = []
        for i, parent in enumerate(self.parents):
            offset = self.joints[i] - (self.joints[parent] if parent >= 0 else 0)
            node: dict = {"name": self.names[i], "translation": [float(v) for v in offset]}
            children = [c for c, p in enumerate(self.parents) if p == i]
            if children:
                node["children"] = children
            nodes.append(node)
        nodes.append({"name": "body", "mesh": 0, "skin": 0})
        samplers = [{"input": 6, "output": 7}] + [{"input": 6, "output": 8 + i} for i in range(count)]
        channels = [{"sampler": 0, "target": {"node": 0, "path": "translation"}}]
        channels += [{"sampler": 1 + i, "target": {"node": i, "path": "rotation"}} for i in range(count)]
        attributes = {"POSITION": 0, "NORMAL": 1, "JOINTS_0": 2, "WEIGHTS_0": 3}
        return {
            "asset": {"version": "2.0", "generator": "tore_fast"},
            "scene": 0,
            "scenes": [{"nodes": [0, count]}],
            "nodes": nodes,
            "meshes": [{"primitives": [{"attributes": attributes, "indices": 4}]}],
            "skins": [{"joints": list(range(count)), "inverseBindMatrices": 5, "skeleton": 0}],
            "animations": [{"name": "motion", "samplers": samplers, "channels": channels}],
            "bufferViews": views,
            "accessors": accessors,
            "buffers": [{"byteLength": size}],
        }
