"""Weak perspective s * (xy + t), and the pinhole that sees the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tore_fast.geometry import camera


def test_project_weak():
    points = torch.tensor([[[1.0, 2.0, 9.0]], [[0.5, -1.0, 3.0]]])
    cam = torch.tensor([[2.0, 0.1, -0.2], [0.5, 0.0, 1.0]])
    torch.testing.assert_close(camera.project_weak(points, cam), torch.tensor([[[2.2, 3.6]], [[0.25, 0.0]]]))
    with pytest.raises(ValueError, match=r"camera must be \[2, 3\]"):
        camera.project_weak(points, cam[:1])
    with pytest.raises(ValueError, match=r"points must be \[B, N, 3\]"):
        camera.project_weak(points[0], cam)


def test_a_pinhole_at_the_full_translation_sees_what_the_crop_sees():
    cam, size = (
        torch.tensor([[0.8, 0.1, -0.3]], dtype=torch.float64),
        torch.tensor([[1920.0, 1080.0]], dtype=torch.float64),
    )
    center, side, focal = (
        torch.tensor([[500.0, 700.0]]).double(),
        torch.tensor([400.0]).double(),
        torch.tensor([1500.0]).double(),
    )
    flat = torch.tensor([[[0.2, -0.5, 0.0], [0.0, 0.0, 0.0], [-0.4, 0.9, 0.0]]], dtype=torch.float64)
    t = camera.full_translation(cam, focal=focal, crop=side, offset=center - size / 2)
    seen = camera.project(flat + t[:, None], camera.intrinsics(focal, size))
    want = center + camera.project_weak(flat, cam) * side / 2
    torch.testing.assert_close(seen, want, rtol=1e-6, atol=1e-6)
    whole = camera.image_camera(cam[0].numpy(), (500.0, 700.0), 400.0)
    np.testing.assert_allclose(flat[0, :, :2].numpy() * whole[0] + whole[1:], want[0].numpy(), atol=1e-9)


def test_the_camera_of_the_crop_itself():
    cam = torch.tensor([[0.9, 0.2, -0.1]])
    own = camera.full_translation(cam, focal=5000.0, crop=256)
    torch.testing.assert_close(own, torch.tensor([[0.2, -0.1, 2 * 5000 / (256 * 0.9)]]))
