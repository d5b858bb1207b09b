"""Synthetic hands: labels follow from pose and shape, images show the labels, fingers bend the right way, the wrist is
closed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="background photographs come from scikit-image (extra: train)")

from tore_fast.body import load_body  # noqa: E402
from tore_fast.data.synth import HELD_OUT_HAND, SynthHandGenerator, generator_class, held_out  # noqa: E402
from tore_fast.data.synth.draw import Draw  # noqa: E402
from tore_fast.data.synth.hand import PARTS, border_loop, sample_hand_pose  # noqa: E402
from tore_fast.geometry.rotation import axis_angle_to_matrix  # noqa: E402
from tore_fast.geometry.skeleton import HAND21, MANO16  # noqa: E402

SIZE = 64


@pytest.fixture(scope="module")
def made(hand):
    return SynthHandGenerator(hand, SIZE, seed=3).batch(0, 24)


def test_labels_follow_from_pose_and_shape(made, hand):
    vertices = hand(made["pose"], made["betas"]).vertices
    joints = hand.regress("hand21", vertices)
    torch.testing.assert_close(made["vertices"], vertices - joints[:, :1], atol=2e-5, rtol=0)
    torch.testing.assert_close(made["joints3d"], joints - joints[:, :1], atol=2e-5, rtol=0)
    assert made["joints2d"].shape == (24, 21, 2) and made["mask"].max() <= len(PARTS)


def test_image_shows_the_labels(made, hand):
    """Every pixel of a finger or the palm lies where the exact camera puts the hand's 778 vertices; the forearm goes
    beyond."""
    vertices = made["vertices"]
    points = torch.cat(
        (vertices, vertices[:, torch.from_numpy(hand.faces().astype(np.int64))].mean(2)), 1
    )  # and face centres
    x = points + made["translation"][:, None]
    exact = (x[..., :2] / x[..., 2:] - made["crop"][:, None, :2]) / made["crop"][:, None, 2:]
    centre, forearm = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1, 0
    for i in range(len(exact)):
        mask = made["mask"][i]
        rows, columns = ((mask > 0) & (mask < len(PARTS))).nonzero().T
        assert len(rows) > 30
        nearest = torch.cdist(torch.stack((centre[columns], centre[rows]), 1), exact[i]).amin(1)
        assert nearest.max() < 0.12 and nearest.mean() < 0.025
        forearm += bool((mask == len(PARTS)).any())
    assert forearm > 15


def test_finger_parts_lie_at_their_tips(hand):
    """Thumb and finger labels are not mixed up: a part's pixels are nearest to the joints of that finger."""
    made, votes = SynthHandGenerator(hand, SIZE, seed=4).batch(0, 24, difficulty=0.1), []
    for part, finger in enumerate(("Thumb", "Index", "Middle", "Ring", "Pinky"), start=1):
        own = [j for j, name in enumerate(HAND21) if name.startswith(finger)]
        for i in range(24):
            where = (made["mask"][i] == part + 1).nonzero()
            if len(where) > 12:
                at = (where.float() + 0.5).flip(1) * 2 / SIZE - 1
                distance = torch.cdist(at, made["joints2d"][i]).argmin(1)
                votes.append(np.isin(distance.numpy(), own).mean() > 0.5)
    assert len(votes) > 60 and np.mean(votes) > 0.85


def test_fingers_bend_towards_the_palm(hand):
    """A fist brings every fingertip near the palm (rest palm towards -y) and the bent thumb across it."""
    rotations = sample_hand_pose(Draw(400, "fist"), 1.0)
    rotations[:, 0] = torch.eye(3)
    joints = hand.regress("hand21", hand(rotations).vertices)
    rest = hand.regress("hand21", hand(torch.zeros(1, 48)).vertices)
    for finger in ("Index", "Middle", "Ring", "Pinky"):
        bent = rotations[:, MANO16.index(f"{finger}2"), 1, 0] > 0.9  # about z, more than 64 degrees
        assert bent.sum() > 40
        tip, last = (joints[bent, HAND21.index(f"{finger}{k}")] for k in (4, 3))
        assert (last[:, 1] < rest[0, HAND21.index(f"{finger}3"), 1] - 0.01).float().mean() > 0.95  # on the palm's side
        assert (tip[:, 0] > rest[0, HAND21.index(f"{finger}4"), 0] + 0.02).all()  # and back towards the wrist
    folded = joints[rotations[:, MANO16.index("Thumb3")].diagonal(dim1=1, dim2=2).sum(1) < 2.2, HAND21.index("Thumb4")]
    assert len(folded) > 20 and (folded[:, 2] < rest[0, HAND21.index("Thumb4"), 2] - 0.02).float().mean() > 0.9


def test_palm_towards_the_camera_shows_the_thumb_right(hand):
    """A right hand, fingers up, palm towards the camera: thumb on the right of the image; the back mirrors it."""
    made = SynthHandGenerator(hand, SIZE, seed=5).batch(0, 64, difficulty=0.0)
    j = made["joints3d"]
    index, pinky, thumb = (j[:, HAND21.index(n)] for n in ("Index1", "Pinky1", "Thumb2"))
    towards = axis_angle_to_matrix(made["pose"][:, 0])[:, :, 1]  # where the back of the hand (rest +y) points
    sure = (index[:, 1] < -0.05) & (towards[:, 2].abs() > 0.5)
    palm, right = towards[:, 2] > 0, thumb[:, 0] > (index[:, 0] + pinky[:, 0]) / 2
    assert sure.sum() > 40 and torch.equal(palm[sure], right[sure])
    assert 0.25 < palm.float().mean() < 0.75


def test_the_drawn_mesh_is_closed_at_the_wrist(hand):
    generator = SynthHandGenerator(hand, SIZE, seed=0)
    faces = generator._surface.faces.numpy()
    assert len(border_loop(hand.faces())) == 20 and len(border_loop(faces)) == 20  # only the elbow's end is open
    assert border_loop(faces).min() >= 778
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    assert np.unique(edges, axis=0, return_counts=True)[1].max() == 2
    normals = generator._surface.normals(generator._surface.rest[None, :, :3])[0]
    ring = generator._surface.rest[778:, :3]
    out = ring - ring.view(4, 20, 3).mean(1, keepdim=True).expand(4, 20, 3).reshape(-1, 3)
    assert ((normals[778:-20] * out[:-20])[:, 1:].sum(1) > 0).float().mean() > 0.95  # faces look outwards
    with pytest.raises(ValueError, match="closed"):
        border_loop(load_body("free").faces())
    with pytest.raises(ValueError, match="no hand"):
        SynthHandGenerator(load_body("free"), SIZE)


def test_streams_and_held_out_sets(made, hand):
    again = SynthHandGenerator(hand, SIZE, seed=3).batch(0, 24)
    assert all(torch.equal(made[k], again[k]) for k in made)
    assert not torch.equal(made["images"], SynthHandGenerator(hand, SIZE, seed=3, split="test").batch(0, 24)["images"])
    assert generator_class(hand) is SynthHandGenerator and held_out(hand) is HELD_OUT_HAND
    assert {k: tuple(v) for k, v in HELD_OUT_HAND.items()} == {
        "hard": (20_261_123, 1.0, 20, 50),
        "easy": (20_261_124, 0.3, 20, 50),
    }
    fixed = SynthHandGenerator(hand, 32, HELD_OUT_HAND["hard"].seed, split="test").batch(0, 50)["pose"]
    # a change of the prior changes this; then say in CHANGELOG that older numbers do not compare
    torch.testing.assert_close(fixed[0, 4], torch.tensor(HELD_OUT_MIDDLE), atol=1e-4, rtol=0)


HELD_OUT_MIDDLE = (-0.0371, -0.0648, 1.0403)
