"""NME, failure rate and subsets on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.eval.nme import error_auc, failure_rate, nme, nme_report


def faces(count=3):
    truth = np.random.default_rng(0).uniform(0, 200, (count, 98, 2))
    truth[:, 60], truth[:, 72] = (50, 80), (90, 110)  # 50 pixels apart
    return truth


def test_nme_is_the_mean_distance_over_the_eye_distance():
    truth = faces()
    predicted = truth.copy()
    predicted[1, :, 0] += 5.0
    predicted[2, 7] += (3.0, 4.0)
    np.testing.assert_allclose(nme(predicted, truth), [0.0, 0.1, 5 / 98 / 50], atol=1e-12)


def test_report():
    errors = np.array([0.02, 0.09, 0.2])
    attributes = np.zeros((3, 6), bool)
    attributes[0, 0] = attributes[2, 0] = attributes[1, 5] = True
    report = nme_report(errors, attributes, ("pose", "expression", "illumination", "makeup", "occlusion", "blur"))
    assert report["nme"] == pytest.approx(errors.mean())
    assert report["nme_pose"] == pytest.approx(0.11)
    assert report["nme_blur"] == pytest.approx(0.09)
    assert np.isnan(report["nme_makeup"])
    assert report["fr_0.08"] == pytest.approx(2 / 3) and report["fr_0.10"] == pytest.approx(1 / 3)


def test_failure_and_auc():
    assert failure_rate(np.array([0.05, 0.15])) == 0.5
    # area under the step curve that jumps to 1/2 at 0.05 (the other face never counts)
    assert error_auc(np.array([0.05, 0.15])) == pytest.approx(0.25)


def test_bad_shapes():
    with pytest.raises(ValueError, match="like truth"):
        nme(faces()[:, :68], faces())
    with pytest.raises(ValueError, match="coincide in face 1"):
        truth = faces()
        truth[1, 60] = truth[1, 72]
        nme(truth, truth)
