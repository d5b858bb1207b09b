"""The landmark fit: 33 body landmarks (2D, 3D, visibility) to a posed body with its camera.

`fit_body(landmarks)` is the way in; `pose_from_joints` is its analytic start, also used by data/synth.
"""

from .fit import fit_body
from .fitted import FittedBody, Landmarks
from .start import landmarks_to_h36m17, pose_from_joints

__all__ = ["FittedBody", "Landmarks", "fit_body", "landmarks_to_h36m17", "pose_from_joints"]
