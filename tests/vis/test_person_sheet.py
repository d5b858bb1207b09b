"""Drawings of one person: landmarks and the view from the side."""

from __future__ import annotations

import numpy as np

from tore_fast.models.keypoints.blazepose import LANDMARK_BONES
from tore_fast.vis.person_sheet import draw_landmarks, side_view


def test_seen_bones_are_strong_hidden_ones_weak():
    image, points = np.full((60, 80, 3), 200, np.uint8), np.zeros((33, 2))
    points[11], points[13], points[12], points[14] = (10, 10), (10, 50), (70, 10), (70, 50)
    seen = np.zeros(33)
    seen[[11, 13]] = 1
    drawn = draw_landmarks(image, [points], [seen])
    assert (11, 13) in LANDMARK_BONES and (12, 14) in LANDMARK_BONES
    assert tuple(drawn[30, 10]) == (255, 214, 10) and tuple(drawn[30, 70]) == (150, 150, 150)
    assert tuple(drawn[30, 40]) == (110, 110, 110) and (image == 200).all()
    nan = draw_landmarks(image, [np.full((33, 2), np.nan)], [seen])
    assert (nan == 110).all()


def test_the_whole_body_is_in_the_side_view():
    corners = np.array([[0, 0, 0], [0, 5, 0], [0, 5, 3], [0, 0, 3.0]]) + 40
    drawn = side_view(corners, np.array([[0, 2, 1], [0, 3, 2]]), (50, 100))
    rows, columns = np.nonzero((drawn != 236).any(2))
    assert drawn.shape == (100, 50, 3) and rows.min() >= 4 and rows.max() <= 95
    assert columns.max() - columns.min() > 40  # depth is across
