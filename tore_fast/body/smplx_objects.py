"""Bodies from objects of the `smplx` package: SMPL, SMPL-H and MANO models that a user has loaded there.

In: an smplx module (its buffers are read, nothing of the package is imported); out: a Body with our skinning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from ..geometry.skeleton import MANO16, SMPL24
from .body import Body, BodyTopology
from .hierarchy import MeshHierarchy

_BUFFERS = ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights", "faces_tensor")
_NAMES = {(24, 6890): ("smpl", SMPL24.names), (16, 778): ("mano", MANO16.names), (52, 6890): ("smplh", None)}


def body_from_smplx(model: Any, topology: BodyTopology | None = None) -> Body:
    """Body of an `smplx` SMPL, SMPL-H or MANO object: the same vertices for the same full pose and betas.

    Args:
        model: smplx.SMPL, smplx.SMPLH or smplx.MANO (or their Layer classes); it is read, not kept.
        topology: hierarchy and regressors of the same mesh; None = the full mesh as the only level.

    The pose of the result is the full one (SMPL-H: 52 joints, body then left and right hand). The object's mean hand
    pose is added unless it is flat, as its own forward does; hand PCA is the caller's.

    Raises:
        TypeError: an object without smplx's buffers. ValueError: SMPL-X and FLAME, or a topology of another mesh.

    Source: Loper et al., "SMPL" (2015), eq. 6-10; the package smplx (Pavlakos et al., 2019) for the layout of buffers.
    """
    if missing := [name for name in _BUFFERS if not hasattr(model, name)]:
        raise TypeError(f"body_from_smplx: expected an SMPL, SMPL-H or MANO object of smplx, it lacks {missing}")
    if hasattr(model, "expr_dirs") or hasattr(model, "expression"):
        raise ValueError("body_from_smplx: expected SMPL, SMPL-H or MANO, got a model with a face (SMPL-X, FLAME)")
    arrays = {name: getattr(model, name).detach().cpu().numpy() for name in _BUFFERS}
    template, regressor = arrays["v_template"].astype(np.float64), arrays["J_regressor"].astype(np.float64)
    shape_dirs = arrays["shapedirs"].astype(np.float64)
    bones, count = regressor.shape
    name, joint_names = _NAMES.get((bones, count), ("smplx object", None))
    mean = getattr(model, "pose_mean", None)
    mean = None if mean is None else mean.detach().cpu().numpy().reshape(-1, 3)
    mean = None if mean is None or not mean.any() else mean
    if topology is None:
        topology = BodyTopology(name, MeshHierarchy((arrays["faces_tensor"].astype(np.int32),), (), ()))
    regressors = {**topology.regressors, f"{name}{bones}": sp.csr_matrix(regressor)}
    return Body(
        BodyTopology(name, topology.hierarchy, regressors, topology.loss_faces),
        template=template,
        shape_dirs=shape_dirs,
        weights=arrays["lbs_weights"],
        joints=regressor @ template,
        joint_dirs=np.einsum("jv,vcs->jcs", regressor, shape_dirs),
        joint_names=joint_names or tuple(f"joint{i}" for i in range(bones)),
        parents=(-1, *arrays["parents"][1:]),
        pose_dirs=arrays["posedirs"],
        pose_mean=mean,
    )
