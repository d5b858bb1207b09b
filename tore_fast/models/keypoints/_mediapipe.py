"""MediaPipe's .tflite files of the pose nets -> models/keypoints/blazepose.py, by the order of their convolutions.

Needs the small PyPI package `tflite` (the flatbuffer schema; pure Python). Nothing of a file is executed: tensors are
read, and every shape must be the one that the model has. Half-precision weights stay exactly what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...io.weights import unreadable
from .._registry import create_model
from .._weights import load_strict
from .blazepose import BodyLandmarks, PersonDetector

SHA256 = {
    "person_detector": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    "body_landmarks": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    "body_landmarks_lite": "f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",
    "body_landmarks_heavy": "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
}
"""The published files: pose_detection.tflite, pose_landmark_{full, lite, heavy}.tflite (Apache-2.0, The MediaPipe
Authors)."""
_FILES = {
    "person_detector": "pose_detection.tflite",
    "body_landmarks": "pose_landmark_full.tflite",
    "body_landmarks_lite": "pose_landmark_lite.tflite",
    "body_landmarks_heavy": "pose_landmark_heavy.tflite",
}
_SEGMENTATION = (1, 256, 256, 1)  # output that is left out, with all that leads to it alone
_FLOAT_TYPES = {0: np.float32, 1: np.float16}
_INTEGER_VECTORS = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}


def is_tflite(path: str | Path) -> bool:
    """Whether a file says that it is a TFLite flatbuffer."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(8)[4:] == b"TFL3"


def name_of_file(path: str | Path) -> str | None:
    """Registered name of a published file by its SHA-256; None for any other."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return next((name for name, known in SHA256.items() if known == digest), None)


def card(name: str) -> dict:
    """What config.json says of converted weights: whose they are, their licence, what they were trained on and not made
    for."""
    return {
        "task": "keypoints",
        "source": f"{_FILES[name]} of MediaPipe (google-ai-edge/mediapipe), SHA-256 {SHA256[name]}",
        "authors": "Copyright The MediaPipe Authors",
        "licence": "Apache-2.0",
        "changes": "weights re-stored as safetensors, graph rewritten in torch, segmentation branch left out",
        "trained_on": "by Google, on images of its own that are not published: the makers' model card of 16 April 2021 "
        "names 30 thousand consented images and 85 thousand of fitness exercises; depth from fits of a statistical "
        "body to the 2D points",
        "not_for": "the makers' model card puts out of scope: several people in one image (here each has a crop), "
        "people further than about 4 m away, people whose head cannot be seen, metric depth, surveillance and the "
        "identification of people",
        "paper": "BlazePose, arXiv:2006.10204",
    }


def load_tflite(path: str | Path) -> tuple[nn.Module, str]:
    """Model (float32, eval mode) with the weights of a .tflite file, and its registered name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of the pose nets, or damaged; or the package `tflite` is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        weights = read_convolutions(path)
    except ImportError:
        raise ValueError(f"{path}: reading .tflite files needs the package tflite: pip install tflite") from None
    except Exception as e:  # offsets of a damaged flatbuffer lead anywhere
        raise unreadable(path, e) from None
    known = name_of_file(path)
    for name in [known] if known else SHA256:
        with torch.device("meta"):
            shapes = [tuple(p.weight.shape) for p in _in_file_order(create_model(name))]
        if shapes == [tuple(w.shape) for w, _ in weights]:
            break
    else:
        raise ValueError(
            f"{path}: expected pose_detection or pose_landmark_lite/full/heavy of MediaPipe, got a net of "
            f"{len(weights)} convolutions of other shapes"
        )
    model = create_model(name)
    names = {module: key for key, module in model.named_modules()}
    state = {}
    for module, (weight, bias) in zip(_in_file_order(model), weights):
        state[f"{names[module]}.weight"], state[f"{names[module]}.bias"] = weight, bias
    load_strict(model, state, str(path), name)
    return model.eval(), name


def _in_file_order(model: Any) -> Iterator[nn.Conv2d]:
    """Convolutions as the files list them. A level's side paths come behind the first layer of the next level."""
    landmarks = isinstance(model, BodyLandmarks)
    assert landmarks or isinstance(model, PersonDetector)
    side: dict[int, list[nn.Module]] = {}
    for level in range(1, 4):
        if landmarks:
            joins = model.joins[level - 2 : level - 1] if level >= 2 else []
            side[level] = [model.laterals[level - 1], *joins]
        else:
            side[level] = [m for m, at in ((model.lateral_fine, 2), (model.lateral_middle, 3)) if at == level]
    trunk = model.trunk
    yield from trunk.stem
    for i, block in enumerate(trunk.blocks):
        yield block.expand
        if i in trunk.ends:
            for module in side.get(trunk.ends.index(i), ()):
                yield from _convolutions(module)
        yield from (block.depth, block.project)
    yield from trunk.head
    if not landmarks:
        rest = (model.fuse_middle, model.residual_middle, model.fuse_fine, model.residual_fine)
        anchors = (model.anchors_fine, model.anchors_middle, model.anchors_coarse)
        for module in (*rest, *anchors):
            yield from _convolutions(module)
        return
    shallow = model.config.shallow
    order = (model.deepest, *model.tower[:shallow], model.heat, model.neck, *model.tower[shallow:])
    for module in (*order, model.points, model.world, model.score):
        yield from _convolutions(module)


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    yield from (m for m in module.modules() if isinstance(m, nn.Conv2d))


def read_convolutions(path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """(weight [O, I / groups, kh, kw], bias [O]) of every convolution that something but the segmentation needs, in
    order."""
    import tflite

    model = tflite.Model.GetRootAsModel(Path(path).read_bytes(), 0)
    graph = model.Subgraphs(0)
    made: dict[int, Any] = {}  # tensor -> operator that makes it
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    codes = []
    for op in operators:
        code = model.OperatorCodes(op.OpcodeIndex())
        codes.append(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        made[op.Outputs(0)] = op
    outputs = [graph.Outputs(i) for i in range(graph.OutputsLength())]
    needed = {t for t in outputs if tuple(graph.Tensors(t).ShapeAsNumpy()) != _SEGMENTATION}
    live = set()
    for i in reversed(range(len(operators))):
        if operators[i].Outputs(0) in needed:
            live.add(i)
            needed.update(operators[i].InputsAsNumpy().tolist())
    ops = tflite.BuiltinOperator

    def constant(index: int) -> np.ndarray:
        while index in made:  # through DEQUANTIZE and DENSIFY, which the reading does
            index = made[index].Inputs(0)
        tensor = graph.Tensors(index)
        values = model.Buffers(tensor.Buffer()).DataAsNumpy().view(_FLOAT_TYPES[tensor.Type()])
        shape = tensor.ShapeAsNumpy()
        return values.reshape(shape) if tensor.Sparsity() is None else _dense(tensor.Sparsity(), values, shape)

    found = []
    for i, (op, code) in enumerate(zip(operators, codes)):
        if i not in live or code not in (ops.CONV_2D, ops.DEPTHWISE_CONV_2D):
            continue
        weight, bias = (torch.from_numpy(constant(op.Inputs(k)).astype(np.float32)) for k in (1, 2))
        axes = (0, 3, 1, 2) if code == ops.CONV_2D else (3, 0, 1, 2)
        found.append((weight.permute(*axes).contiguous(), bias))
    return found


def _dense(sparsity: Any, values: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A sparse constant of the schema (levels that are dense or compressed, then blocks), filled with zeros."""
    import tflite

    order = sparsity.TraversalOrderAsNumpy().tolist()
    blocks = sparsity.BlockMapAsNumpy().tolist() if sparsity.BlockMapLength() else []
    ranks = len(shape)

    def vector(kind: int, table: Any) -> np.ndarray:
        reader = getattr(tflite, _INTEGER_VECTORS[kind])()
        reader.Init(table.Bytes, table.Pos)
        return reader.ValuesAsNumpy().astype(np.int64)

    positions = np.zeros((1, 0), np.int64)  # [n, levels so far] index on each level
    slots = np.zeros(1, np.int64)  # place of each among the entries of the level
    sizes = []
    for k in range(sparsity.DimMetadataLength()):
        level = sparsity.DimMetadata(k)
        if level.Format() == 0:
            size = level.DenseSize()
            index = np.tile(np.arange(size), len(slots))
            parent = np.repeat(np.arange(len(slots)), size)
            slots = np.repeat(slots, size) * size + index
        else:
            size = 0
            segments = vector(level.ArraySegmentsType(), level.ArraySegments())
            indices = vector(level.ArrayIndicesType(), level.ArrayIndices())
            counts = segments[slots + 1] - segments[slots]
            parent = np.repeat(np.arange(len(slots)), counts)
            slots = np.concatenate([np.arange(segments[s], segments[s + 1]) for s in slots]) if len(slots) else slots
            index = indices[slots]
        sizes.append(size)
        positions = np.concatenate([positions[parent], index[:, None]], 1)
    place = np.zeros((len(positions), ranks), np.int64)
    for level, axis in enumerate(order):
        if axis < ranks:
            side = sizes[order.index(ranks + blocks.index(axis))] if axis in blocks else 1
            place[:, axis] += positions[:, level] * side
        else:
            place[:, blocks[axis - ranks]] += positions[:, level]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(place.T)] = values[slots]
    return dense
