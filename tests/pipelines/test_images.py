"""The main job on images of every kind: crops and cameras, bad files, several people, equal results for any
batching."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tore_fast.body import load_body
from tore_fast.geometry.crop import Crop, crop_of_box, whole_crop
from tore_fast.geometry.warp import model_input
from tore_fast.io.image import read_image
from tore_fast.models import create_model
from tore_fast.pipelines.images import ImagePipeline


class Fixed(nn.Module):
    """Returns the rest pose, lifted by the mean of the crop so that results depend on the image."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(image_size=64)
        body = load_body("free")
        vertices = body(torch.zeros(1, 24, 3)).vertices * torch.tensor([1.0, -1.0, -1.0])
        self.register_buffer("vertices", vertices)
        self.register_buffer("coarse", body.coarse(vertices, 2))

    def forward(self, images):
        level = images.mean((1, 2, 3))[:, None, None] * 1e-3
        camera = torch.tensor([[0.5, 0.05, -0.02]]).expand(len(images), 3)
        vertices, coarse = self.vertices + level, self.coarse + level
        return SimpleNamespace(
            camera=camera, joints=coarse[:, :14], vertices_coarse=coarse, vertices_intermediate=None, vertices=vertices
        )


@pytest.fixture(scope="module")
def model():
    return Fixed()


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(50, 80), (120, 60), (33, 33), (400, 300), (64, 64)]):
        path = tmp_path / f"p{i}.png"
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_one_result_per_image_whatever_the_batch_size(model, images):
    one = ImagePipeline(model, batch_size=1, device="cpu").predict(images, "full")
    many = ImagePipeline(model, batch_size=4, device="cpu").predict(images, "full")
    assert [r.name for r in one] == [str(p) for p in images]
    for a, b in zip(one, many):
        assert a.error is None and len(a.people) == 1
        np.testing.assert_allclose(a.people[0].vertices, b.people[0].vertices, atol=1e-6)
        assert a.people[0].vertices.shape == (6890, 3) and a.people[0].joints_2d.shape == (14, 2)


def test_pelvis_is_the_origin_and_cameras_agree(model, images):
    person = ImagePipeline(model, device="cpu").predict(images[3], [[(100, 50, 250, 280)]])[0].people[0]
    hips = person.joints_3d[[2, 3]].mean(0)
    assert np.abs(hips).max() < 0.15  # the hips surround the pelvis
    scale, x, y = person.camera_image
    np.testing.assert_allclose(person.joints_2d, scale * person.joints_3d[:, :2] + [x, y], atol=1e-3)
    # the perspective camera of the whole image gives nearly the same points as the weak-perspective one
    p = person.joints_3d + person.trans
    perspective = person.focal_px * p[:, :2] / p[:, 2:] + person.principal_px
    assert np.abs(perspective - person.joints_2d).max() < 0.03 * person.crop.side and person.principal_px == (200, 150)


def test_several_boxes(model, images):
    boxes = [(0, 0, 100, 200), (200, 50, 300, 290), (10, 10, 60, 60)]
    result = ImagePipeline(model, batch_size=2, device="cpu").predict([images[3]], [boxes])[0]
    assert [p.box for p in result.people] == boxes and {p.box_source for p in result.people} == {"given"}
    assert result.people[0].crop == Crop.square(50, 100, 240)


def test_bad_images_do_not_stop_the_others(model, images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 nothing")
    paths = [images[0], tmp_path / "bad.jpg", tmp_path / "gone.jpg", images[1]]
    boxes = [[(0, 0, 40, 70)], [(0, 0, 9, 9)], [(0, 0, 9, 9)], [(float("nan"), 0, 1, 1)]]
    results = ImagePipeline(model, device="cpu").predict(paths, boxes)
    assert [r.error is None for r in results] == [True, False, False, False]
    assert "bad.jpg" in results[1].error and "no such file" in results[2].error and "NaN" in results[3].error


def test_auto_box_follows_the_mesh(model, images):
    person = ImagePipeline(model, device="cpu").predict(images[3])[0].people[0]
    assert person.box_source == "auto"
    assert person.crop.side < 400  # the first look covered the whole 400-pixel image
    x0, y0, x1, y1 = person.box
    assert 0 <= x0 < x1 <= 400 and 0 <= y0 < y1 <= 300


def test_a_second_look_that_sees_half_is_not_believed(model, images):
    class Shy(Fixed):  # sees a third of any crop: each look would be smaller than the one before
        def forward(self, images):
            out = super().forward(images)
            out.camera = out.camera * torch.tensor([0.4, 1.0, 1.0])
            return out

    person = ImagePipeline(Shy(), device="cpu").predict(images[3])[0].people[0]
    assert person.crop.side == 400 and person.box == (0, 0, 400, 300) and person.box_source == "auto"
    assert ImagePipeline(model, device="cpu").predict(images[3])[0].people[0].crop.side < 250  # sees half of any crop


def test_arrays_and_errors(model):
    pipeline = ImagePipeline(model, device="cpu")
    assert pipeline.predict(np.zeros((20, 30, 3), np.uint8), "full")[0].size == (30, 20)
    with pytest.raises(ValueError, match="one entry per image"):
        pipeline.predict([np.zeros((20, 30, 3), np.uint8)], [[(0, 0, 5, 5)], []])
    with pytest.raises(ValueError, match="boxes must be one of"):
        pipeline.predict([np.zeros((20, 30, 3), np.uint8)], "somehow")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            ImagePipeline(model, device="cuda")


def test_cut_whole_square_equals_plain_resize():
    pixels = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    got = model_input(pixels, whole_crop(80, 80), 32)
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    want = (small - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-5)


def test_cut_outside_is_black():
    pixels = np.full((40, 40, 3), 255, np.uint8)
    got = model_input(pixels, crop_of_box((20, 20, 60, 60), margin=1.0), 8)
    black = (0 - 0.485) / 0.229
    np.testing.assert_allclose(got[0, 5:, 5:], black, atol=1e-6)
    assert got[0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)


def test_models_of_parameters_on_a_photograph(images):
    """Poses, shape and camera of HMR2.0 and CameraHMR; the body posed with them is the mesh."""
    torch.manual_seed(0)
    small = dict(embed_dim=32, depth=2, num_heads=2, decoder_depth=1, decoder_heads=2, decoder_dim=24)
    for name in ("hmr2_vitt", "camerahmr_vits"):
        network = create_model(name, **small).eval()
        pipeline = ImagePipeline(network, device="cpu", batch_size=2, fov_deg=50.0)
        boxes = [(100, 50, 250, 280), (10, 10, 120, 200)]
        people = pipeline.predict([images[3]], [boxes])[0].people
        assert [p.box for p in people] == boxes and pipeline.joint_names[0] == "Pelvis"
        for p in people:
            assert p.poses.shape == (72,) and p.rotations.shape == (24, 3, 3) and p.betas.shape == (10,)
            posed = load_body("free")(torch.from_numpy(p.poses)[None], torch.from_numpy(p.betas)[None])
            np.testing.assert_allclose(posed.vertices[0].numpy(), p.vertices, atol=2e-4)
            assert p.focal_px == pytest.approx(150 / np.tan(np.radians(25)), rel=1e-5)
        # the crop's weak camera and the whole image's pinhole agree on the middle of the body
        np.testing.assert_allclose(people[0].joints_2d.mean(0), people[0].camera_image[1:], atol=60)
    with pytest.raises(ValueError, match="task mesh or smpl"):
        ImagePipeline("hot_mixste_27", device="cpu")


def test_find_people_gives_the_boxes(model, images):
    pipeline = ImagePipeline(
        model, device="cpu", find_people=lambda pixels: [(5, 5, 40, 60, 0.9)][: pixels.shape[0] > 70]
    )
    some, nobody = pipeline.predict([images[0], images[2]])
    assert [p.box for p in some.people] == [(5, 5, 40, 60)] and some.people[0].box_source == "found"
    assert nobody.people == [] and nobody.error is None
    given = pipeline.predict([images[0]], [[(1, 1, 30, 40)]])[0].people[0]
    assert given.box_source == "given"


def test_whatever_a_decoder_raises_costs_one_image(model, images, monkeypatch):
    import tore_fast.pipelines.images as module

    def odd(source):
        if str(source).endswith("p1.png"):
            raise KeyError(0x8769)  # as broken EXIF does
        return read_image(source)

    monkeypatch.setattr(module, "read_image", odd)
    results = ImagePipeline(model, device="cpu").predict(images[:3], "full")
    assert [r.error is None for r in results] == [True, False, True] and "p1.png: cannot be decoded" in results[1].error
