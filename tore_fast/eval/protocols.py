"""How a predicted mesh is scored against a record: body (Human3.6M, 3DPW, ...) and hand (FreiHAND) protocols.

In: predicted vertices [B, V, 3] and records of data/readers. Out: one row of numbers per item (rows.py keeps them), and
means over all rows. Next on the way: evaluate.py runs a model over a reader. Source: official evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..body import Body
from ..data.readers import JOINT_SETS, Record, to_j24
from ..geometry.procrustes import similarity_align
from ..geometry.skeleton import H36M17_TO_J14, J14_HIPS, J24, J24_TO_J14
from ..io.atomic import write_text
from .metrics import mpjpe, mpvpe, pa_mpjpe

TRUTHS = ("auto", "annotation", "mesh", "mesh_j24")
GENDERS = ("neutral", "male", "female")
F_THRESHOLDS_M = (0.005, 0.015)
_PELVIS24 = J24.index("Pelvis")
_NAN = float("nan")


class BodyProtocol:
    """MPJPE, PA-MPJPE, MPVPE, PA-MPVPE and acceleration error of 14 joints and the full mesh.

    The prediction's joints are the H36M regressor's 14 on its fine mesh. True joints are the annotated ones (from J24
    or J14 or 4D-Humans' 44), else regressed from the true mesh. MPJPE re-centres both at the mean of the hips; MPVPE
    centres both meshes on their own regressed pelvis; the PA errors align each item by the best similarity.

    Args:
        bodies: "neutral" and, for `gendered`, "male" and "female": what pose and betas mean.
        truth: where true joints come from: "annotation", "mesh" (H36M regressor on the true mesh), "mesh_j24" (J24
            regressor on it, how METRO made its 3DPW labels; SMPL with extra regressor only) or "auto": annotation where
            all 14 are labelled, else mesh.
        gendered: true meshes by the record's gender. The official evaluations read it but use the neutral body
            (default).
    """

    name = "body"
    metrics = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")

    def __init__(self, bodies: dict[str, Body], truth: str = "auto", gendered: bool = False):
        if truth not in TRUTHS:
            raise ValueError(f"BodyProtocol: truth must be one of {TRUTHS}, got {truth!r}")
        missing = [g for g in (GENDERS if gendered else GENDERS[:1]) if g not in bodies]
        if missing:
            raise ValueError(f"BodyProtocol: no {' and '.join(missing)} body given")
        self.bodies, self.truth_kind, self.gendered = bodies, truth, gendered
        self.body = bodies["neutral"]
        if truth == "mesh_j24":
            self.body.topology.regressor("j24")  # says what there is, where it is missing

    def identity(self) -> dict:
        return {"protocol": self.name, "truth": self.truth_kind, "gendered": self.gendered, "body": self.body.name}

    def truth(self, record: Record) -> dict[str, Any]:
        """Arrays and numbers of fixed shape that a data loader can stack."""
        joints = _annotated_joints(record) if self.truth_kind in ("auto", "annotation") else None
        return {
            "joints": np.zeros((14, 3), np.float32) if joints is None else joints,
            "has_joints": np.float32(joints is not None),
            "pose": np.zeros(72, np.float32) if not record.has_smpl else np.asarray(record.pose, np.float32),
            "betas": np.zeros(10, np.float32) if not record.has_smpl else np.asarray(record.betas, np.float32),
            "has_smpl": np.float32(record.pose is not None and record.has_smpl and len(record.pose) == 72),
            "gender": np.int64(GENDERS.index(record.gender) if self.gendered else 0),
        }

    def rows(self, vertices: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-item numbers of predicted vertices [B, 6890, 3] in metres; NaN where the label is missing."""
        vertices = vertices.float()
        pred, pelvis = self._joints(vertices)
        mesh = self._mesh(truth)
        mesh_joints, mesh_pelvis = self._joints(mesh)
        if self.truth_kind == "mesh_j24":
            j24 = self.body.regress("j24", mesh)
            mesh_joints = j24[:, list(J24_TO_J14)] - j24[:, _PELVIS24, None]
        annotated, has_mesh = truth["has_joints"] > 0, truth["has_smpl"] > 0
        if self.truth_kind == "annotation":
            joints, has = truth["joints"], annotated
        else:
            joints = torch.where(annotated[:, None, None], truth["joints"], mesh_joints)
            has = annotated | has_mesh
        centred, mesh_centred = vertices - pelvis, mesh - mesh_pelvis
        aligned = similarity_align(centred, mesh_centred)
        return {
            "mpjpe_mm": _only(1000 * mpjpe(pred, joints), has),
            "pa_mpjpe_mm": _only(1000 * pa_mpjpe(pred, joints), has),
            "mpvpe_mm": _only(1000 * mpvpe(centred, mesh_centred), has_mesh),
            "pa_mpvpe_mm": _only(1000 * mpvpe(aligned, mesh_centred), has_mesh),
            "annotated": annotated.float(),
            "joints_pred": _at_hips(pred),
            "joints_true": _only(_at_hips(joints), has),
        }

    def _joints(self, vertices: Tensor) -> tuple[Tensor, Tensor]:
        regressed = self.body.regress("h36m17", vertices)
        pelvis = regressed[:, :1]
        return regressed[:, list(H36M17_TO_J14)] - pelvis, pelvis

    def _mesh(self, truth: dict[str, Tensor]) -> Tensor:
        if not self.gendered:
            return self.body(truth["pose"], truth["betas"]).vertices
        out: Any = None
        for number, gender in enumerate(GENDERS):
            mine = truth["gender"] == number
            if mine.any():
                vertices = self.bodies[gender](truth["pose"][mine], truth["betas"][mine]).vertices
                out = vertices.new_zeros(len(mine), *vertices.shape[1:]) if out is None else out
                out[mine] = vertices
        return out

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        """Means over all items, with the number of items behind each."""
        out = _means(rows, self.metrics)
        error, count = acceleration_error(rows["joints_pred"], rows["joints_true"], sequences, frames)
        if count:
            out["accel_mm_per_frame2"], out["counts"]["accel_mm_per_frame2"] = 1000 * error, count
        out["true_joints_from_annotation"] = int(np.nansum(rows["annotated"]))
        return out


class HandProtocol:
    """FreiHAND: wrist-centred joints and vertices for the official JSON, and its numbers where the truth is at hand.

    Only the aligned numbers mean anything: models predict no depth. The official evaluator lets its alignment mirror
    the hand; this one does not (a mirrored hand is wrong), which differs only for broken predictions.

    Args:
        body: hand with a hand21 regressor; 445 is its middle fingertip, as upstream regresses it.
    """

    name = "hand"
    metrics = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm", "f_5mm", "f_15mm", "pa_f_5mm", "pa_f_15mm")

    def __init__(self, body: Body):
        body.topology.regressor("hand21")
        self.body = body

    def identity(self) -> dict:
        return {"protocol": self.name, "body": self.body.name}

    def truth(self, record: Record) -> dict[str, Any]:
        """Arrays and numbers of fixed shape that a data loader can stack."""
        count = len(self.body.template)
        joints = record.keypoints_3d if record.keypoints_3d_set == "hand21" and record.has_3d else None
        vertices = record.vertices if record.vertices is not None and len(record.vertices) == count else None
        has_pose = record.pose is not None and record.has_smpl and len(record.pose) == 48
        return {
            "joints": np.zeros((21, 3), np.float32) if joints is None else joints[:, :3].astype(np.float32),
            "has_joints": np.float32(joints is not None),
            "vertices": np.zeros((count, 3), np.float32) if vertices is None else vertices.astype(np.float32),
            "has_vertices": np.float32(vertices is not None),
            "pose": np.asarray(record.pose, np.float32) if has_pose else np.zeros(48, np.float32),
            "betas": np.asarray(record.betas, np.float32) if has_pose else np.zeros(10, np.float32),
            "has_smpl": np.float32(has_pose),
        }

    def rows(self, vertices: Tensor, truth: dict[str, Tensor], joints: Tensor | None = None) -> dict[str, Tensor]:
        """Per-item numbers of predicted vertices [B, 778, 3] in metres; NaN where the label is missing. `joints` [B,
        21, 3]
        in the frame of the vertices: instead of those regressed from them (multiscale.py)."""
        vertices = vertices.float()
        pred = self.body.regress("hand21", vertices) if joints is None else joints.float()
        vertices, pred = vertices - pred[:, :1], pred - pred[:, :1]
        given, posed = truth["has_vertices"] > 0, truth["has_smpl"] > 0
        mesh = torch.where(given[:, None, None], truth["vertices"], self.body(truth["pose"], truth["betas"]).vertices)
        mesh_joints = self.body.regress("hand21", mesh)
        has_mesh, annotated = given | posed, truth["has_joints"] > 0
        joints = torch.where(annotated[:, None, None], truth["joints"], mesh_joints)
        has = annotated | has_mesh
        joints, mesh = joints - joints[:, :1], mesh - mesh_joints[:, :1]
        aligned_joints, aligned = similarity_align(pred, joints), similarity_align(vertices, mesh)
        out = {
            "mpjpe_mm": _only(1000 * (pred - joints).norm(dim=-1).mean(1), has),
            "pa_mpjpe_mm": _only(1000 * (aligned_joints - joints).norm(dim=-1).mean(1), has),
            "mpvpe_mm": _only(1000 * mpvpe(vertices, mesh), has_mesh),
            "pa_mpvpe_mm": _only(1000 * mpvpe(aligned, mesh), has_mesh),
            "joint_errors_aligned": _only((aligned_joints - joints).norm(dim=-1), has),
            "vertex_errors_aligned": _only((aligned - mesh).norm(dim=-1), has_mesh),
            "joints_pred": pred,
            "vertices_pred": vertices,
        }
        for prefix, points in (("", vertices), ("pa_", aligned)):
            scores = f_score(points, mesh, F_THRESHOLDS_M)
            for i, threshold in enumerate(F_THRESHOLDS_M):
                out[f"{prefix}f_{round(1000 * threshold)}mm"] = _only(scores[:, i], has_mesh)
        return out

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        """Means over all items, with the number of items behind each."""
        out = _means(rows, self.metrics)
        for name in ("joint", "vertex"):
            errors = rows[f"{name}_errors_aligned"]
            errors = errors[np.isfinite(errors).all(1)]
            if len(errors):
                out[f"pa_{name}_auc_50mm"] = area_under_pck(errors)
        return out


def _annotated_joints(record: Record) -> np.ndarray | None:  # [14, 3]
    """The 14 labelled joints, pelvis at the origin; None unless all 14 are labelled."""
    name, points = record.keypoints_3d_set, record.keypoints_3d
    if points is None or name not in JOINT_SETS or name == "hand21":
        return None
    if name == "j14":
        picked = points
    else:
        j24 = to_j24(points, name)
        picked = j24[list(J24_TO_J14)]
        if j24[_PELVIS24, 3] > 0:
            picked = np.concatenate([picked[:, :3] - j24[_PELVIS24, :3], picked[:, 3:]], 1)
    return picked[:, :3].astype(np.float32) if (picked[:, 3] > 0).all() else None


def _at_hips(joints: Tensor) -> Tensor:
    return joints - joints[:, list(J14_HIPS)].mean(1, keepdim=True)


def _only(values: Tensor, has: Tensor) -> Tensor:
    return torch.where(has.reshape(-1, *[1] * (values.dim() - 1)), values, _NAN)


def _means(rows: dict[str, np.ndarray], names: Sequence[str]) -> dict:
    out, counts = {}, {}
    for name in names:
        values = rows[name].astype(np.float64)
        values = values[np.isfinite(values)]
        counts[name] = len(values)
        if len(values):
            out[name] = float(values.mean())
    return {**out, "counts": counts}


def acceleration_error(
    pred: np.ndarray,  # [N, J, 3]
    true: np.ndarray,  # [N, J, 3]
    sequences: Sequence[str],  # [N]
    frames: Sequence[int],  # [N]
) -> tuple[float, int]:
    """Mean |a_pred - a_true| over joints and frames with a(t) = x(t-1) - 2 x(t) + x(t+1), in the unit of x per frame^2.

    Counts only frames whose neighbours t-1 and t+1 of the same sequence are there and labelled. Returns the error and
    the number of frames behind it (0: NaN). Source: Kanazawa et al., "Learning 3D human dynamics from video" (2019).
    """
    pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
    place = {(s, f): i for i, (s, f) in enumerate(zip(sequences, frames)) if s and f >= 0}
    errors = []
    for (s, f), i in place.items():
        before, after = place.get((s, f - 1)), place.get((s, f + 1))
        if before is None or after is None:
            continue
        difference = (pred[before] - 2 * pred[i] + pred[after]) - (true[before] - 2 * true[i] + true[after])
        error = np.linalg.norm(difference, axis=-1).mean()
        if np.isfinite(error):
            errors.append(error)
    return (float(np.mean(errors)) if errors else _NAN), len(errors)


def f_score(
    pred: Tensor,  # [B, N, 3]
    true: Tensor,  # [B, M, 3]
    thresholds: Sequence[float],
) -> Tensor:  # [B, len(thresholds)]
    """2 P R / (P + R): P, R = shares of true and predicted points with a point of the other set nearer than the
    threshold.

    Source: Knapitsch et al., "Tanks and Temples" (2017), as FreiHAND uses it.
    """
    distance = torch.cdist(pred.double(), true.double())  # float32 loses the millimetre by cancellation
    near_pred, near_true = distance.amin(2), distance.amin(1)
    scores = []
    for threshold in thresholds:
        recall = (near_pred < threshold).double().mean(1)
        precision = (near_true < threshold).double().mean(1)
        both = recall + precision
        scores.append(torch.where(both > 0, 2 * recall * precision / both.clamp_min(1e-12), 0.0))
    return torch.stack(scores, 1).float()


def area_under_pck(errors_m: np.ndarray, last_m: float = 0.05, steps: int = 100) -> float:
    """Area under the share of points with error <= threshold, thresholds 0..last_m (trapezoids, normalised to 1).

    errors_m [N, K]: the curve is taken per point k over the N items, then averaged, as FreiHAND's evaluator does.
    """
    thresholds = np.linspace(0.0, last_m, steps)
    curves = np.stack([(errors_m <= t).mean(0) for t in thresholds])  # [steps, K]
    widths = np.diff(thresholds)[:, None]
    areas = ((curves[1:] + curves[:-1]) / 2 * widths).sum(0) / last_m
    return float(areas.mean())


def write_freihand_json(rows: dict[str, np.ndarray], path: str | Path) -> None:
    """`pred.json` of the FreiHAND challenge: [joints of all items, vertices of all items], metres, wrist at the
    origin."""
    value = [np.round(rows[k].astype(np.float64), 7).tolist() for k in ("joints_pred", "vertices_pred")]
    write_text(path, json.dumps(value))
