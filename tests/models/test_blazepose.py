"""Person detector and body landmarks: sizes, decoding, compile and export, the reader of the original files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tore_fast.models import create_model, load
from tore_fast.models._checkpoint import convert
from tore_fast.models.default import default_folder
from tore_fast.models.keypoints import _mediapipe as mediapipe
from tore_fast.models.keypoints.blazepose import NUM_POINTS, anchor_centres, refine_points

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "blazepose"
NAMES = ("person_detector", "body_landmarks")
needs_tflite = pytest.mark.skipif(importlib.util.find_spec("tflite") is None, reason="needs the package tflite")


@pytest.fixture(scope="module", params=NAMES)
def built_in(request):
    return load(default_folder(request.param))


def made_up(model, count=2):
    side = model.config.image_size
    line = torch.linspace(0, 1, side)
    base = torch.stack([line[None].expand(side, side), line[:, None].expand(side, side), line[None] * line[:, None]])
    return torch.stack([(base * (i + 1)) % 1 for i in range(count)])


@torch.inference_mode()
def test_a_batch_is_its_images_and_channels_last_is_the_same(built_in):
    x = made_up(built_in)
    both, single = built_in(x), built_in(x[1:])
    last = built_in.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    for a, b, c in zip(both, single, last):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a[1:], b, atol=2e-3, rtol=1e-5)
        torch.testing.assert_close(a, c, atol=2e-3, rtol=1e-5)


@torch.inference_mode()
def test_compile_without_breaks_and_export(built_in):
    x = made_up(built_in)
    want = built_in(x)
    compiled = torch.compile(built_in, fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(built_in, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    again = exported.module()(torch.cat([x, x[:1]]))
    for a, b, c in zip(want, compiled, again):
        torch.testing.assert_close(b, a, atol=2e-3, rtol=1e-5)
        torch.testing.assert_close(c[:2], a, atol=2e-3, rtol=1e-5)


def test_wrong_sizes_are_named(built_in):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, "):
        built_in(torch.zeros(1, 3, 100, 100))


def test_cards_say_whose_and_what_not_for():
    for name in NAMES:
        config = json.loads((default_folder(name) / "config.json").read_text())
        assert config["licence"] == "Apache-2.0" and "identification" in config["not_for"]
        assert mediapipe.SHA256[name] in config["source"]


def test_features_are_what_the_points_come_from():
    model = load(default_folder("body_landmarks"))
    features = model.features(made_up(model))
    assert features.shape == (2, 288, 8, 8) and 0 <= features.min() and features.max() <= 6


def test_anchors():
    anchors = anchor_centres(224, 224)
    assert anchors.shape == (28 * 28 * 2 + 14 * 14 * 2 + 7 * 7 * 6, 2)
    assert anchors[:4].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4]]
    assert anchors[-1].tolist() == [208, 208]
    assert anchor_centres(64, 96)[-1].tolist() == [80, 48]


@torch.inference_mode()
def test_the_detector_takes_larger_images():
    """What it sees in a part of 224 px does not depend on what lies far from it."""
    model = load(default_folder("person_detector"))
    pixels = np.load(GOLDEN / "astronaut_256.npz")["image"][16:240, 16:240]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    small, large = model(image), model(torch.nn.functional.pad(image, (224, 0, 0, 96)))
    a, b = small.scores[0].argmax(), large.scores[0].argmax()
    assert small.scores[0, a] > 0.5 and large.scores[0, b] > 0.5
    moved = small.points[0, a] + torch.tensor([224.0, 0])
    assert (large.points[0, b] - moved).norm(dim=-1).max() < 25


def refined_by_loops(points, heat):
    """The rule in plain loops."""
    out, sure = points.clone(), heat.sigmoid()
    height, width = heat.shape[-2:]
    for b, j in np.ndindex(*points.shape[:2]):
        c, r = int(points[b, j, 0] * width), int(points[b, j, 1] * height)
        if not (0 <= c < width and 0 <= r < height):
            continue
        x0, x1, y0, y1 = max(0, c - 3), min(width, c + 4), max(0, r - 3), min(height, r + 4)
        w = sure[b, j, y0:y1, x0:x1]
        if w.max() >= 0.5:
            out[b, j, 0] = (w.sum(0) * torch.arange(x0, x1)).sum() / w.sum() / width
            out[b, j, 1] = (w.sum(1) * torch.arange(y0, y1)).sum() / w.sum() / height
    return out


def test_refinement_is_the_rule():
    points = torch.rand(3, NUM_POINTS, 2) * 1.3 - 0.15  # some outside, some at the edge
    heat = torch.randn(3, NUM_POINTS, 16, 12) * 3 - 4
    got = refine_points(points, heat)
    torch.testing.assert_close(got, refined_by_loops(points, heat))
    assert (got != points).any() and (got == points).any()


def write_tflite(path, model):
    """A flatbuffer with the model's convolutions in a chain, float16, as the published files store them."""
    import flatbuffers
    import tflite as t

    b = flatbuffers.Builder(1 << 20)
    convs = list(mediapipe._in_file_order(model))
    buffers, tensors, operators = [b""], [("x", (1, 8, 8, 3), 0, 0)], []

    def add(shape, kind, values=None):
        if values is not None:
            buffers.append(values.tobytes())
        tensors.append(("t", shape, kind, len(buffers) - 1 if values is not None else 0))
        return len(tensors) - 1

    last = 0
    for conv in convs:
        w = conv.weight.detach()
        depthwise = conv.groups > 1
        w = (w.permute(1, 2, 3, 0) if depthwise else w.permute(0, 2, 3, 1)).contiguous().numpy().astype(np.float16)
        constants = [add(w.shape, 1, w), add(tuple(conv.bias.shape), 1, conv.bias.detach().numpy().astype(np.float16))]
        full = []
        for c in constants:
            out = add((1,), 0)
            operators.append((2, [c], out))
            full.append(out)
        out = add((1, 8, 8, len(conv.bias)), 0)
        operators.append((1 if depthwise else 0, [last, *full], out))
        last = out

    def vector(values):
        return b.CreateNumpyVector(np.array(values, np.int32))

    def offsets(items):
        b.StartVector(4, len(items), 4)
        for o in reversed(items):
            b.PrependUOffsetTRelative(o)
        return b.EndVector()

    made_buffers = []
    for data in buffers:
        v = b.CreateByteVector(data) if data else None
        t.BufferStart(b)
        if v is not None:
            t.BufferAddData(b, v)
        made_buffers.append(t.BufferEnd(b))
    made_tensors = []
    for _, shape, kind, buffer in tensors:
        s = vector(shape)
        t.TensorStart(b)
        t.TensorAddShape(b, s)
        t.TensorAddType(b, kind)
        t.TensorAddBuffer(b, buffer)
        made_tensors.append(t.TensorEnd(b))
    made_operators = []
    for code, inputs, output in operators:
        i, o = vector(inputs), vector([output])
        t.OperatorStart(b)
        t.OperatorAddOpcodeIndex(b, code)
        t.OperatorAddInputs(b, i)
        t.OperatorAddOutputs(b, o)
        made_operators.append(t.OperatorEnd(b))
    codes = []
    for code in (t.BuiltinOperator.CONV_2D, t.BuiltinOperator.DEPTHWISE_CONV_2D, t.BuiltinOperator.DEQUANTIZE):
        t.OperatorCodeStart(b)
        t.OperatorCodeAddDeprecatedBuiltinCode(b, code)
        codes.append(t.OperatorCodeEnd(b))
    parts = [offsets(made_tensors), vector([0]), vector([last]), offsets(made_operators)]
    t.SubGraphStart(b)
    for add_part, part in zip(
        (t.SubGraphAddTensors, t.SubGraphAddInputs, t.SubGraphAddOutputs, t.SubGraphAddOperators), parts
    ):
        add_part(b, part)
    graphs = offsets([t.SubGraphEnd(b)])
    all_codes, all_buffers = offsets(codes), offsets(made_buffers)
    t.ModelStart(b)
    t.ModelAddVersion(b, 3)
    t.ModelAddOperatorCodes(b, all_codes)
    t.ModelAddSubgraphs(b, graphs)
    t.ModelAddBuffers(b, all_buffers)
    b.Finish(t.ModelEnd(b), b"TFL3")
    path.write_bytes(bytes(b.Output()))


@needs_tflite
@pytest.mark.parametrize("name", ["person_detector", "body_landmarks_heavy"])
def test_a_file_of_the_nets_is_read_and_converted(tmp_path, name):
    model = create_model(name).half().float()
    file = tmp_path / "net.tflite"
    write_tflite(file, model)
    read = load(file)
    assert all(torch.equal(v, read.state_dict()[k]) for k, v in model.state_dict().items())
    done = convert(file, tmp_path / "out")
    assert (done.layout, done.name) == ("mediapipe", name)
    again = load(tmp_path / "out")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@needs_tflite
def test_other_and_damaged_files_are_refused(tmp_path):
    file = tmp_path / "net.tflite"
    file.write_bytes(b"\x10\0\0\0TFL3" + bytes(range(200)))
    with pytest.raises(ValueError, match="net.tflite"):
        load(file)
    model = create_model("body_landmarks_lite", tower=((192, 2), (192, 2)))
    write_tflite(file, model)
    with pytest.raises(ValueError, match="expected pose_detection or pose_landmark"):
        load(file)


class _Level:
    """One level of a sparse tensor as the flatbuffer schema gives it."""

    def __init__(self, size=0, segments=None, indices=None):
        self.size, self.segments, self.indices = size, segments, indices

    def Format(self):
        return int(self.segments is not None)

    def DenseSize(self):
        return self.size


def test_sparse_constants(monkeypatch):
    """Rows dense, columns compressed in blocks of 1 x 2: the layout of the detector's file, checked by hand."""
    pytest.importorskip("tflite")

    class Sparsity:
        levels = [_Level(3), _Level(segments=[0, 1, 1, 3], indices=[2, 0, 1]), _Level(2)]

        def TraversalOrderAsNumpy(self):
            return np.array([0, 1, 2])

        def BlockMapAsNumpy(self):
            return np.array([1])

        def BlockMapLength(self):
            return 1

        def DimMetadataLength(self):
            return 3

        def DimMetadata(self, k):
            return self.levels[k]

    for level in Sparsity.levels:
        level.ArraySegmentsType = level.ArrayIndicesType = lambda: 1
        level.ArraySegments, level.ArrayIndices = (lambda l=level: l.segments), (lambda l=level: l.indices)

    import tflite

    class Vector:
        def Init(self, values, _):
            self.values = values

        def ValuesAsNumpy(self):
            return np.array(self.values)

    class Table(list):
        Bytes = property(lambda self: list(self))
        Pos = 0

    for level in Sparsity.levels:
        level.segments = None if level.segments is None else Table(level.segments)
        level.indices = None if level.indices is None else Table(level.indices)
    monkeypatch.setattr(tflite, "Int32Vector", Vector)
    got = mediapipe._dense(Sparsity(), np.arange(1, 7, dtype=np.float16), np.array([3, 6]))
    want = np.zeros((3, 6), np.float16)
    want[0, 4:6], want[2, 0:2], want[2, 2:4] = (1, 2), (3, 4), (5, 6)
    assert (got == want).all()
