"""SAM 3D Body: masks of the previous frame, exact and near-exact speed-ups, each by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from made_up import foreign_body, foreign_vit

from tore_fast.accelerate import Refused, accelerate
from tore_fast.accelerate.sam3d import polygon_mask
from tore_fast.accelerate.speedups import EXACT

IMAGE = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def estimator():
    torch.manual_seed(0)
    made = foreign_body.Estimator()
    foreign_vit.randomise(made.model)
    return made


def points(estimator):
    return [p["pred_keypoints_3d"] for p in estimator.process_one_image(IMAGE)]


def equal(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("names", [*((n,) for n in EXACT), True])
def test_exact_speed_ups_one_by_one(estimator, names):
    want = points(estimator)
    with accelerate(estimator, exact_speedups=names) as handle:
        assert handle.report(64)["exact"] == sorted(EXACT if names is True else names)
        assert equal(points(estimator), want)
        twin = copy.deepcopy(estimator)
    assert equal(points(twin), want) and equal(points(estimator), want)
    assert all("forward" not in vars(m) for m in estimator.model.modules())


def test_prompts_of_every_label(estimator):
    encoder = estimator.model.prompt_encoder
    labels = torch.tensor([[-3.0, -2, -1, 0, 69, 70, 1.5]])
    place = torch.rand(1, 7, 2)
    with torch.no_grad():
        want = encoder._embed_keypoints(place, labels)
        with accelerate(estimator):
            assert all(torch.equal(a, b) for a, b in zip(encoder._embed_keypoints(place, labels), want))
            with pytest.raises(AssertionError):
                encoder._embed_keypoints(place + 1, labels)
            encoder.point_embeddings[0].weight.add_(1)  # noticed
            got = encoder._embed_keypoints(place, labels)[0]
        assert torch.equal(got, encoder._embed_keypoints(place, labels)[0]) and not torch.equal(got, want[0])


def test_another_formula_is_left_alone(estimator):
    estimator.model.prompt_encoder._embed_keypoints = lambda p, label: (p.new_zeros(*p.shape[:2], 32), label > -2)
    own = estimator.model.prompt_encoder._embed_keypoints
    with accelerate(estimator) as handle:
        assert handle.report(64)["exact"] == ["k_bias", "ray_features", "rope_table"]
    assert estimator.model.prompt_encoder._embed_keypoints is own


def test_correctives_in_the_last_predictions_only(estimator):
    body, hand = estimator.model.head_pose.mhr, estimator.model.head_pose_hand.mhr
    want = points(estimator)
    assert body.switches == [True] * 4 and hand.switches == [True] * 3
    body.switches.clear(), hand.switches.clear()
    with accelerate(estimator, near_exact="correctives") as handle:
        got = points(estimator)
        assert body.switches == [False, False, True, True] and hand.switches == [False, False, True]
        assert list(estimator.model.state_dict()) and next(estimator.model.head_pose.mhr.parameters()) is not None
        error = max(abs(a - b).max() for a, b in zip(got, want))
        assert 0 < error < 1e-2 and handle.report(64)["near_exact"] == ["correctives"]
        found = handle.compare([IMAGE])["rows"][0]
        assert {"hands_mm", "vertices_mm", "image_px"} <= set(found) and found["mean"] > 0
        estimator.model.decoder.extra = 1
        with pytest.raises(Refused, match="one body model per decoder layer \\(3\\), there were 4"):
            points(estimator)
    estimator.model.decoder.extra = 0
    assert equal(points(estimator), want)


@pytest.mark.parametrize("name", ["keypoint_rows", "decoder_autocast"])
def test_near_exact_speed_ups_stay_near(estimator, name):
    want = points(estimator)
    keys = list(estimator.model.state_dict())
    with accelerate(estimator, near_exact=(name,)) as handle:
        got = points(estimator)
        assert max(abs(a - b).max() for a, b in zip(got, want)) < (1e-5 if name == "keypoint_rows" else 0.1)
        assert handle.report(64)["near_exact"] == [name] and list(estimator.model.state_dict()) == keys
        rows = estimator.model.head_pose.keypoint_mapping @ torch.ones(40, 1)
        assert len(rows) == (70 if name == "keypoint_rows" else 308)
    assert equal(points(estimator), want)


def test_one_camera_for_a_clip(estimator):
    camera = estimator.fov_estimator
    with accelerate(estimator, near_exact=("fov",)) as handle:
        points(estimator), points(estimator)
        assert camera.calls == 1
        handle.new_clip()
        points(estimator)
        assert camera.calls == 2
    points(estimator)
    assert camera.calls == 3


def test_the_previous_frame_is_the_mask(estimator):
    with accelerate(estimator, keep_tokens=(32, None), masks="previous") as handle:
        seen, original = [], handle._branch.coverage
        handle._branch.coverage = lambda batch, hand: seen.append(original(batch, hand)) or seen[-1]
        for _ in range(2):
            points(estimator)
        handle.new_clip()
        points(estimator)
        first, second, third = seen
        # the box is 0.32 x 0.8 of the crop; the last frame's vertices fill its left half
        assert torch.equal(first, third) and first.sum(1).tolist() == pytest.approx([0.32 * 0.8 * 64] * 2, rel=0.15)
        assert torch.all(second.sum(1) < 0.6 * first.sum(1)) and torch.all(second.sum(1) > 0.25 * first.sum(1))
        grid = second.reshape(2, 8, 8)
        assert torch.all(grid[:, :, :4].sum((1, 2)) > 5 * grid[:, :, 4:].sum((1, 2)))
        for person in handle._previous.people:  # somebody else stands there now
            person["bbox"] = person["bbox"] + 500
        assert torch.equal(original(last_batch(), False), first)
    assert "process_one_image" not in vars(estimator)
    with pytest.raises(Refused, match="'previous' needs the estimator"):
        accelerate(estimator.model, keep_tokens=20, masks="previous")


def last_batch():
    boxes = torch.tensor([[[20.0, 10, 60, 110], [80.0, 30, 120, 130]]])
    size, warp = torch.full((1, 2, 2), 160.0), torch.eye(3)[:2].expand(1, 2, 2, 3)
    scale, img = torch.full((1, 2, 2), 125.0), torch.zeros(1, 2, 3, 128, 128)
    return {"img": img, "bbox": boxes, "bbox_scale": scale, "affine_trans": warp, "ori_img_size": size}


def test_a_function_gives_the_masks(estimator):
    def left(batch):
        mask = torch.zeros(batch["img"].shape[1], 128, 128)
        mask[:, :, :32] = 1
        return mask

    with accelerate(estimator, keep_tokens=(32, 40), masks=left) as handle:
        assert handle._branch.coverage(last_batch(), False).reshape(2, 8, 8).sum((0, 1)).tolist() == [16, 16] + [0] * 6
        assert len(points(estimator)) == 2


def test_polygons():
    square = torch.tensor([[2.0, 1], [5, 1], [5, 3], [2, 3]])
    want = torch.zeros(6, 8)
    want[1:4, 2:6] = 1
    assert torch.equal(polygon_mask(square, (6, 8)), want) and torch.equal(polygon_mask(square.flip(0), (6, 8)), want)


@pytest.mark.parametrize("name", ["correctives", "keypoint_rows", "decoder_autocast", "fov"])
def test_speed_ups_for_others_are_refused(name):
    with pytest.raises(Refused, match=f"'{name}' is for SAM 3D Body; this object has no"):
        accelerate(foreign_vit.randomise(foreign_vit.RotaryViT()), near_exact=name)


def test_unknown_names_and_a_body_model_without_a_switch(estimator):
    with pytest.raises(ValueError, match="near-exact speed-ups are"):
        accelerate(estimator, near_exact=("magic",))
    estimator.model.head_pose.mhr.forward = lambda shape, params, expr=None: (shape, params)
    with pytest.raises(Refused, match="a body model with a switch"):
        accelerate(estimator, near_exact="correctives")
    assert not any("forward_pose_branch" in vars(m) or "token_runtime" in vars(m) for m in estimator.model.modules())
