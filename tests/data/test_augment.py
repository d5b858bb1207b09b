"""Official training crops: augmentation draws, targets that move with the image."""

from __future__ import annotations

import numpy as np

from tore_fast.data import augment
from tore_fast.data.augment import Augmentation, AugmentConfig
from tore_fast.geometry.skeleton import J24, mirror_points

RNG = np.random.default_rng(0)


def test_flips_are_involutions():
    joints, pose = RNG.normal(size=(24, 4)), RNG.normal(size=72)
    np.testing.assert_allclose(mirror_points(mirror_points(joints, J24), J24), joints)
    np.testing.assert_allclose(augment.mirror_pose(augment.mirror_pose(pose)), pose)
    assert mirror_points(joints, J24)[J24.index("L_Knee"), 1] == joints[J24.index("R_Knee"), 1]


def test_root_rotation_agrees_with_joint_rotation():
    from scipy.spatial.transform import Rotation

    root, joints = RNG.normal(size=3), RNG.normal(size=(24, 3))
    posed = Rotation.from_rotvec(root).apply(joints)
    augmentation = Augmentation(rotation_deg=37.0)
    pose = augment.training_pose(np.concatenate([root, np.zeros(69)]), augmentation)
    turned = augment.training_keypoints_3d(np.concatenate([posed, np.ones((24, 1))], 1), augmentation)
    np.testing.assert_allclose(Rotation.from_rotvec(pose[:3]).apply(joints), turned[:, :3], atol=1e-5)
    assert (turned[:, 3] == 1).all()


def test_augmentation_draws():
    rng = np.random.default_rng(1)
    drawn = [augment.draw_augmentation(rng, AugmentConfig()) for _ in range(2000)]
    turns = np.array([a.rotation_deg for a in drawn])
    assert abs((turns == 0).mean() - 0.6) < 0.04 and np.abs(turns).max() <= 60
    assert abs(np.mean([a.flip for a in drawn]) - 0.5) < 0.04
    assert {0.75, 1.25} <= {a.scale for a in drawn} and min(a.scale for a in drawn) == 0.75
    hands = [augment.draw_augmentation(rng, AugmentConfig.hand()) for _ in range(500)]
    assert not any(a.flip for a in hands) and max(abs(a.rotation_deg) for a in hands) > 60


def test_training_crop_and_keypoints_mirror_together():
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[90:94, 40:44] = 200
    joints = np.ones((24, 3))
    joints[:, :2] = [42, 92]
    for flip in (False, True):
        a = Augmentation(flip=flip, gain=(1.0, 2.0, 0.5))
        image = augment.training_crop(pixels, (100, 100), 1.0, a)
        assert image.shape == (3, 224, 224) and image.dtype == np.float32
        y, x = np.unravel_index(image[0].argmax(), image[0].shape)
        got = augment.training_keypoints_2d(joints, (100, 100), 1.0, a)
        assert abs((got[0, 0] + 1) * 112 - x) < 5 and abs((got[0, 1] + 1) * 112 - y) < 5 and got[0, 2] == 1
