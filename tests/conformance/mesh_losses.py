"""Golden cases of the image-to-mesh family without a network: loss terms, metrics, crop and augmentation rules."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tore_fast.body import load_topology
from tore_fast.data import augment
from tore_fast.eval.metrics import mpjpe, mpvpe, pa_mpjpe
from tore_fast.geometry.camera import project_weak
from tore_fast.geometry.crop import Crop, spin_pixels
from tore_fast.geometry.procrustes import similarity_align
from tore_fast.geometry.rotation import axis_angle_to_matrix
from tore_fast.geometry.skeleton import J24, mirror_points
from tore_fast.geometry.warp import warp
from tore_fast.train import losses

from . import recipe
from .case import Case

ATOL = 5e-5


def _input(name: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.float32(scale) * recipe.tensor(f"input.{name}", shape))


def run_losses(case: Case) -> None:
    has = torch.tensor([1, 0, 1, 1])
    keep = has.bool()
    pred_1723, gt_1723 = (_input(f"{k}_vertices_1723", 4, 1723, 3, scale=0.3) for k in ("pred", "gt"))
    pred_fine, gt_fine = (_input(f"{k}_vertices_6890", 4, 6890, 3, scale=0.3) for k in ("pred", "gt"))
    pred_joints, gt_joints = (_input(f"{k}_joints", 4, 14, 3, scale=0.3) for k in ("pred", "gt"))
    conf3d, conf2d = ((_input(k, 4, 14, 1) > -0.5).float()[..., 0] for k in ("conf3d", "conf2d"))
    topology = load_topology("smpl", case.mesh_file("mesh_sampling_plain.npz").parent)
    faces = torch.from_numpy(np.load(case.mesh_file("smpl_1723_faces.npy")).astype(np.int64))
    edges = torch.from_numpy(np.load(case.mesh_file("smpl_1723_edges.npy")).astype(np.int64))
    full = torch.from_numpy(topology.hierarchy.faces[0].astype(np.int64))
    cam = _input("cam", 4, 3).abs() * torch.tensor([0.5, 0.2, 0.2])
    heatmap = (2 * _input("heatmap_logits", 4, 39, 49)).softmax(-1)
    mesh_2d = 0.35 * _input("mesh_2d", 4, 6890, 2) * torch.tensor([0.5, 1.0]) + torch.tensor([0.2, -0.1])
    axis_angle = _input("axis_angle", 6, 3)
    axis_angle[0] = 0
    rotmat = axis_angle_to_matrix(_input("gt_pose", 4, 72, scale=0.5).unflatten(1, (24, 3)))
    got = {
        "keypoint_3d_l1": losses.joints_3d_loss(pred_joints, gt_joints, conf3d, has),
        "keypoint_3d_mse": losses.joints_3d_loss(pred_joints, gt_joints, conf3d, has, "mse"),
        "keypoint_2d_l1": losses.joints_2d_loss(_input("pred_2d", 4, 14, 2), _input("gt_2d", 4, 14, 2), conf2d),
        "vertices_l1": losses.vertices_loss(pred_1723, gt_1723, has),
        "edge_gt_uniform": losses.edge_length_loss(pred_1723, gt_1723, edges, has),
        "edge_gt_faces": losses.edge_length_loss(pred_1723, gt_1723, losses.face_edges(faces), has),
        "edge_self_uniform": losses.edge_length_prior(pred_1723, edges, has),
        "normal": losses.normal_loss(pred_1723, gt_1723, faces, has),
        "tore_normal_full": losses.normal_loss(pred_fine, gt_fine, full, has),
        "tore_edge_full": losses.edge_length_loss(pred_fine, gt_fine, losses.face_edges(full), has, eps=1e-6),
        "itp_loss": losses.itp_loss(heatmap, mesh_2d, (7, 7), has),
        "itp_mask_gt": losses.grid_occupancy(mesh_2d[keep], (7, 7)),
        "itp_minmax_heatmap_token0": losses.min_max_heatmap(heatmap)[keep, 0].unflatten(1, (7, 7)),
        "mpjpe": mpjpe(pred_joints, gt_joints)[keep],
        "mpvpe": mpvpe(pred_1723, gt_1723)[keep],
        "pa_aligned": similarity_align(pred_joints, case.stored("pa_target")),
        "pa_error": pa_mpjpe(pred_joints, case.stored("pa_target")),
        "projection": project_weak(pred_joints, cam),
        "rodrigues": axis_angle_to_matrix(axis_angle),
        "smpl_param_loss": losses.smpl_parameter_loss(
            _input("pred_rotmat", 4, 24, 3, 3, scale=0.5),
            _input("pred_betas", 4, 10),
            rotmat,
            _input("gt_betas", 4, 10),
            has,
        ),
    }
    for name in case.meta["outputs"]:
        if name != "pa_target":  # an input of the Procrustes checks
            value = got[name]
            case.close(name, value[None] if value.dim() == 0 else value, ATOL, rtol=1e-5)


def run_preprocess(case: Case) -> None:
    center, points = [100.0, 120.0], case.arrays["points"]

    def close(name: str, got: np.ndarray, atol: float) -> None:
        case.close(name, torch.from_numpy(np.asarray(got)), atol)

    for rotation in (0, 25):
        crop = Crop.of_scale(center, 0.9, rotation)
        close(f"get_transform_rot{rotation}", np.concatenate([crop.matrix(224), [[0, 0, 1]]]), 1e-4)
        close(f"transform_rot{rotation}", spin_pixels(points, crop, 224), 0)
    with Image.open(case.mesh_file("3dpw_test1.jpg")) as image:
        pixels = np.asarray(image.convert("RGB"))
    # the decoder may differ by 2 levels; OpenCV turns images with coordinates rounded to 1/32 pixel
    close("crop64_rot0", warp(pixels, Crop.of_scale(center, 0.9), 64, "spin"), 2.0)
    close("crop64_out_of_image", warp(pixels, Crop.of_scale([10.0, 10.0], 0.8), 64, "spin"), 2.0)
    turned = warp(pixels, Crop.of_scale(center, 0.9, 25), 64, "spin")
    close("crop64_rot25", turned, 4.0)
    assert np.abs(turned - case.arrays["crop64_rot25"]).mean() < 0.05
    pose = case.array("pose72")
    close("flip_kp", mirror_points(np.array(case.array("kp24")), J24), 1e-5)
    close("flip_pose", augment.mirror_pose(pose), 1e-5)
    close("rot_aa_30", augment.rotate_axis_angle(pose[:3], 30), 1e-5)
    upside_down = Rotation.from_rotvec(pose[:3]) * Rotation.from_rotvec([np.pi, 0, 0])
    close("rectify_pose", np.concatenate([upside_down.as_rotvec(), pose[3:]]), 1e-5)
