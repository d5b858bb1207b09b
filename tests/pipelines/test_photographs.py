"""The default pipeline: people found, bodies fitted, one camera an image. The person is scikit-image's NASA
portrait."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tore_fast.io.exif import focal_from_exif
from tore_fast.models import create_model
from tore_fast.pipelines.images import ImagePipeline
from tore_fast.pipelines.photographs import PhotographPipeline, image_pipeline
from tore_fast.pipelines.results import draw


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def pipeline() -> PhotographPipeline:
    return PhotographPipeline(device="cpu")


def test_parameters_give_the_vertices(pipeline, portrait):
    import torch

    (result,) = pipeline.predict(portrait)
    (person,) = result.people
    assert person.believed and person.box_source == "found" and person.focal_source == "assumed"
    assert result.notes == ("focal length assumed: 614 px, 1.2 times the longer side",)
    body = pipeline.body(torch.from_numpy(person.rotations)[None], torch.from_numpy(person.betas)[None])
    np.testing.assert_allclose(body.vertices[0], person.vertices, atol=1e-4)
    placed = person.vertices + person.trans
    pixels = person.focal_px * placed[:, :2] / placed[:, 2:] + person.principal_px
    head = pixels[np.argsort(person.vertices[:, 1])[:50]].mean(0)  # y down
    assert abs(head[0] - 222) < 60 and head[1] < 110
    drawn = draw(result, pipeline)
    assert (drawn != result.pixels).any(2).mean() > 0.2


def test_one_camera_for_all_people_and_given_boxes(portrait):
    pipeline = PhotographPipeline(device="cpu", focal_px=700.0, principal_px=(250.0, 260.0))
    boxes = [(30, 10, 480, 512), (60, 0, 400, 512)]
    (result,) = pipeline.predict([portrait], [boxes])
    assert [p.box_source for p in result.people] == ["given", "given"] and result.notes == ()
    assert {(p.focal_px, p.principal_px, p.focal_source) for p in result.people} == {(700.0, (250.0, 260.0), "given")}
    (whole,) = pipeline.predict([portrait], "full")
    assert whole.people[0].box_source == "full"
    (bad,) = pipeline.predict([portrait], [[(600, 0, 700, 10)]])
    assert "lies outside" in bad.error


def test_a_body_that_does_not_fit_is_said_and_drawn_faint(pipeline):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    (result,) = pipeline.predict([noise], [[(20, 20, 180, 180)]])  # a box without a person, given by the user
    (person,) = result.people
    assert not person.believed and person.reason
    assert result.notes[0] == f"person 0 is not believed: {person.reason}"


def test_bad_images_cost_themselves_alone(pipeline, portrait, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    Image.fromarray(portrait).save(tmp_path / "good.png")
    results = pipeline.predict([tmp_path / "broken.jpg", tmp_path / "good.png", tmp_path / "none.png"])
    assert [len(r.people) for r in results] == [0, 1, 0]
    assert "broken.jpg" in results[0].error and "no such file" in results[2].error


def test_which_pipeline_a_name_means():
    assert isinstance(image_pipeline("default", device="cpu"), PhotographPipeline)
    named = image_pipeline("tore_default", device="cpu", max_people=2)
    assert type(named) is ImagePipeline and named.find_people is not None
    assert image_pipeline(create_model("tore_default"), device="cpu").find_people is not None
    with pytest.raises(ValueError, match="min_score must lie in 0..1"):
        image_pipeline(min_score=3)


def test_named_models_get_the_boxes(portrait):
    (result,) = image_pipeline("tore_default", device="cpu").predict(portrait)
    assert [p.box_source for p in result.people] == ["found"] and 0 <= result.people[0].box[0] < 150
    (nobody,) = image_pipeline("tore_default", device="cpu").predict(np.zeros((50, 60, 3), np.uint8))
    assert nobody.people == [] and nobody.notes == ("nobody found",)


def test_focal_length_in_exif(tmp_path):
    def saved(tags: dict) -> float | None:
        exif = Image.Exif()
        exif.get_ifd(0x8769).update(tags)
        Image.new("RGB", (360, 240)).save(tmp_path / "x.jpg", exif=exif)
        return focal_from_exif(tmp_path / "x.jpg")

    assert saved({0xA405: 50}) == pytest.approx(500)
    assert saved({0x920A: 5.0, 0xA20E: 1000.0, 0xA210: 3}) == pytest.approx(500)  # 5 mm, 1000 px a centimetre
    assert saved({}) is None and saved({0xA405: 9000}) is None and saved({0xA405: 0, 0x920A: 5.0}) is None
    assert focal_from_exif(b"no image") is None and focal_from_exif(tmp_path / "none.jpg") is None


def test_a_head_alone_is_not_believed(pipeline, portrait):
    head, half = pipeline.predict([np.ascontiguousarray(portrait[10:190, 150:300]), portrait])
    assert [p.believed for p in half.people] == [True]
    assert [p.believed for p in head.people] == [False] and "little but the head is seen" in head.people[0].reason
