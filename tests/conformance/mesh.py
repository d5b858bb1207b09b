"""Golden cases of the image-to-mesh family: FastMETRO, TORE, METRO, Mesh Graphormer, losses, pre-processing.

A case says by `model`, `config` and its key shapes what to build; the weights are loaded strictly in the official
layout.
"""

from __future__ import annotations

import numpy as np
import torch

from tore_fast.body import load_topology
from tore_fast.geometry.camera import project_weak
from tore_fast.geometry.skeleton import H36M17_TO_J14
from tore_fast.models.mesh._topology import mesh_from_topology, resolve_mesh
from tore_fast.models.mesh.layouts import trunk_of

from .case import Case, SkipCase

ATOL, ATOL_E2E = 5e-5, 1e-3
OUTPUTS = {
    "pred_cam": "camera",
    "pred_3d_joints": "joints",
    "pred_3d_vertices_coarse": "vertices_coarse",
    "pred_3d_vertices_intermediate": "vertices_intermediate",
    "pred_3d_vertices_fine": "vertices",
    "token_heatmap": "heatmap",
}


def runner(case: Case):
    """Function that checks `case`, or None if the case belongs to another family."""
    model, keys = case.model.lower(), case.meta.get("state_dict") or {}
    if model.startswith("loss and metric"):
        from .mesh_losses import run_losses

        return run_losses
    if model.startswith("crop"):
        from .mesh_losses import run_preprocess

        return run_preprocess
    if model.startswith("smpl_parameter"):
        return run_smpl_regressor
    if "token_selector_fc.weight" in keys or ("tore" in model and "transformer_1.encoder.norm.weight" in keys):
        return run_tore
    if model.startswith("fastmetro"):
        return run_fastmetro
    if "transformer_3.encoder.norm.weight" in keys and any(k.startswith("trans_encoder.") for k in keys):
        return run_metro_tore
    if model.startswith("graphormer"):
        return run_graphormer
    if model.startswith("metro"):
        return run_metro
    if {"cam_token_embed.weight", "transformer_1.encoder.norm.weight"} <= set(keys):  # whatever its name
        return run_fastmetro
    if any(k.startswith("trans_encoder.0.bert.") for k in keys):
        return run_graphormer if any(".graph_conv." in k for k in keys) else run_metro
    return None


def mesh_for(case: Case):
    kind = "mano" if "hand" in case.model.lower() or (case.config.get("mesh_type") == "hand") else "smpl"
    return resolve_mesh(kind, case.mesh_file("mesh_sampling_plain.npz").parent), kind


def backbone_of(case: Case) -> str | None:
    """Trunk of an end-to-end case, told by its keys; None for feature-fed cases (no backbone.* keys)."""
    state = case.meta["state_dict"]
    name = trunk_of(state)
    if name is None and any(k.startswith("backbone.") for k in state):
        raise SkipCase(f"no backbone for {case.config.get('arch')!r}")
    return name


def images(case: Case) -> torch.Tensor:
    """A coarse random image plus fine noise (recipe in the cases' notes)."""
    low, high = case.array("images_low"), case.array("images_high")
    times = high.shape[-1] // low.shape[-1]
    return torch.from_numpy(np.float32(low.repeat(times, 2).repeat(times, 3) + 0.5 * high))


def model_input(case: Case) -> torch.Tensor:
    return images(case) if "images" in (case.meta.get("inputs") or {}) else case.input("features")


def image_size(case: Case) -> tuple[int, int]:
    """Height and width in pixels; of the image that feature-fed cases stand for."""
    inputs = case.meta["inputs"]
    spec, stride = next(
        ((inputs[k], n) for k, n in (("features", 32), ("input.features", 32), ("images", 1)) if k in inputs), ({}, 1)
    )
    height, width = (spec.get("shape") or [224, 224])[-2:] if isinstance(spec, dict) else (224, 224)
    return height * stride, width * stride


def load(model, case: Case):
    from tore_fast.models.mesh.layouts import to_native

    model.load_state_dict(to_native(case.state_dict()), strict=True)
    return model.eval()


def transformer_fields(case: Case) -> dict:
    c, state = case.config, case.meta["state_dict"]
    layers = sum(k.startswith("transformer_1.encoder.layers.") and k.endswith("norm1.weight") for k in state)
    backbone = backbone_of(case)
    return {
        "backbone": backbone,
        "feature_dim": c.get("conv_1x1_dim", 2048) if backbone is None else 0,
        "image_size": image_size(case),
        "layers": layers,
        "num_joints": state["joint_token_embed.weight"][0],
        "dim_1": c.get("model_dim_1", 512),
        "dim_2": c.get("model_dim_2", 128),
        "feedforward_1": c.get("feedforward_dim_1", 2048),
        "feedforward_2": c.get("feedforward_dim_2", 512),
        "heads": c.get("transformer_nhead", 8),
        "dropout": c.get("transformer_dropout", 0.1),
    }


class Taps:
    """Inputs and outputs of sub-modules during one forward pass."""

    def __init__(self, model, *names: str):
        self.inputs, self.outputs = {}, {}
        for name in names:
            model.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str):
        def hook(_module, args, out) -> None:
            self.inputs[name], self.outputs[name] = args, out

        return hook


def check_outputs(case: Case, out, atol: float) -> None:
    for name, field in OUTPUTS.items():
        if name in case.arrays:
            case.close(name, getattr(out, field), atol)


def check_regressed(case: Case, out, atol: float) -> None:
    """Joints regressed from the fine mesh, centred on the regressed pelvis, and their projection."""
    if "pelvis_from_fine" not in case.arrays:
        return
    regressor = np.load(case.mesh_file("J_regressor_h36m_correct.npy"), allow_pickle=False)
    h36m = torch.from_numpy(regressor).float() @ out.vertices
    pelvis = h36m[:, 0]
    joints = h36m[:, list(H36M17_TO_J14)] - pelvis[:, None]
    case.close("pelvis_from_fine", pelvis, atol)
    case.close("joints14_from_fine_centred", joints, atol)
    if "joints14_2d" in case.arrays:
        case.close("joints14_2d", project_weak(joints, out.camera), atol * 10)


def check_backbone(case: Case, features: torch.Tensor, atol: float) -> None:
    if "backbone_channel_mean" in case.arrays:
        case.close("backbone_channel_mean", features.mean((2, 3)), atol)
    if "mean_reduction_6" in case.arrays:
        case.close("mean_reduction_6", features.mean((2, 3)), atol)
    for name in ("backbone_features_b0_even_channels", "reduction_6_b0"):
        if name in case.arrays:
            step = features.shape[1] // case.arrays[name].shape[0]
            case.close(name, features[0, ::step], atol)


def run_fastmetro(case: Case) -> None:
    from tore_fast.models.mesh.fastmetro import FastMETRO, FastMETROConfig

    state = case.meta["state_dict"]
    mesh, kind = mesh_for(case)
    config = FastMETROConfig(
        **transformer_fields(case),
        mesh=kind,
        shared_reduction="dim_reduce_enc.weight" in state,
        learned_upsample="coarse2intermediate_upsample.weight" in state,
        smpl_head=any(k.startswith("smpl_parameter_regressor.") for k in state),
    )
    model = load(FastMETRO(config, mesh), case)
    atol = ATOL if config.backbone is None else ATOL_E2E
    taps = Taps(model, "transformer_1", "transformer_2", *(["backbone"] if config.backbone else []))
    with torch.no_grad():
        out = model(model_input(case))
    check_outputs(case, out, atol)
    check_regressed(case, out, atol)
    for i in (1, 2):
        t = taps.outputs[f"transformer_{i}"]
        if f"enc{i}_cam" in case.arrays:
            case.close(f"enc{i}_cam", t.camera.transpose(0, 1), atol)
        if f"enc{i}_img_b0" in case.arrays:
            case.close(f"enc{i}_img_b0", t.memory[0], atol)
        if f"jv{i}_sel" in case.arrays:
            case.close(f"jv{i}_sel", t.decoded[:, case.stored("jv_token_sel")].transpose(0, 1), atol)
    if "pos_enc_1" in case.arrays:
        case.close("pos_enc_1", model.token_pos, ATOL)
    if "attention_mask_blocked_count_per_row" in case.arrays:
        blocked = (~model.pattern().dense_mask()).sum(1).int()
        case.close("attention_mask_blocked_count_per_row", blocked, 0)
    if "pred_rotmat" in case.arrays:
        case.close("pred_rotmat", out.rotmat, atol)
        case.close("pred_betas", out.betas, atol)
    if config.backbone:
        check_backbone(case, taps.outputs["backbone"], atol)
    with torch.no_grad():
        check_outputs(case, model.prepare()(model_input(case)), atol)


def run_tore(case: Case) -> None:
    from tore_fast.models.mesh.tore import FastMETRO_TORE, FastMETROToreConfig

    c, state = case.config, case.meta["state_dict"]
    mesh, kind = mesh_for(case)
    soft = "token_selector_fc.weight" in state
    fields = transformer_fields(case)
    height, width = fields["image_size"]
    cells = height * width // 32**2
    keep = state["token_selector_fc.weight"][0] if soft else cells
    config = FastMETROToreConfig(
        **fields,
        mesh=kind,
        dim_3=c.get("model_dim_3", 128),
        feedforward_3=c.get("feedforward_dim_3", 512),
        selector="soft" if soft else "none",
        keep_ratio=c.get("keep_ratio", keep / cells),
        selector_dim=state["token_selector_fc.weight"][1] if soft else 128,
    )
    model = load(FastMETRO_TORE(config, mesh), case)
    assert model.keep_num == c.get("keep_num", keep)
    atol = ATOL if config.backbone is None else ATOL_E2E
    names = [
        "transformer_2",
        "transformer_3",
        *(["layer_norm"] if soft else []),
        *(["backbone"] if config.backbone else []),
    ]
    taps = Taps(model, *names)
    with torch.no_grad():
        out = model(model_input(case))
    check_outputs(case, out, atol)
    check_regressed(case, out, atol)
    if soft and "kept_tokens" in case.arrays:
        case.close("pooled_before_norm_b0", taps.inputs["layer_norm"][0][0], atol)
        case.close("kept_tokens", taps.outputs["layer_norm"], atol)
    if "joint_features_2" in case.arrays:
        case.close("joint_features_2", taps.outputs["transformer_2"].decoded.transpose(0, 1), atol)
        case.close("cam_features_2", taps.outputs["transformer_2"].camera.transpose(0, 1), atol)
    if "vertex_features_sel" in case.arrays:
        vertices = taps.outputs["transformer_3"].decoded[:, case.stored("vertex_sel")]
        case.close("vertex_features_sel", vertices.transpose(0, 1), atol)
    if "pos_enc_1_b0" in case.arrays:
        case.close("pos_enc_1_b0", model.token_pos, ATOL)
    if "pos_enc_3_b0" in case.arrays:
        case.close("pos_enc_3_b0", model.transformer_3.joint_pos, ATOL)
    if config.backbone:
        check_backbone(case, taps.outputs["backbone"], atol)
    with torch.no_grad():
        check_outputs(case, model.prepare()(model_input(case)), atol)


def bert_fields(case: Case) -> dict:
    c, state = case.config, case.meta["state_dict"]
    backbone = backbone_of(case)
    hidden, ff = c["hidden_feat_dim"], c["intermediate_size"]
    fields = {
        "backbone": backbone,
        "feature_dim": c["input_feat_dim"][0] - 3 if backbone is None else 0,
        "hidden": tuple(hidden),
        "widths": tuple(c["input_feat_dim"][1:]),
        "feedforward": tuple(ff) if isinstance(ff, list) else (ff,) * 3,
        "layers": c.get("num_hidden_layers", 4),
        "heads": c.get("num_attention_heads", 4),
        "layer_norm_eps": c.get("layer_norm_eps", 1e-12),
        "positions": state["trans_encoder.0.bert.position_embeddings.weight"][0],
        "num_joints": 21 if "upsampling2.weight" not in state else 14,
    }
    if "cam_param_fc2.weight" in state:
        fields["camera_dim"], tokens = state["cam_param_fc2.weight"]
        fields["camera_from_joints"] = tokens != state["upsampling.weight"][1]
    return fields


def template_mesh(case: Case):
    """The case's mesh with the made-up rest template of the notes; its points are the queries."""
    kind = "smpl" if "upsampling2.weight" in case.meta["state_dict"] else "mano"
    topology = load_topology(kind, case.mesh_file("mesh_sampling_plain.npz").parent)
    if kind == "smpl":
        case.mesh_file("J_regressor_h36m_correct.npy")
    joints = case.array("template_joints")[0] if kind == "mano" else None
    return mesh_from_topology(topology, case.array("template_vertices")[0], joints), kind


def check_blocks(case: Case, model, mesh, taps: Taps, atol: float) -> None:
    if "ref_vertices" in case.arrays:
        case.close("ref_vertices", model.template[None], ATOL)
    if "token_sel" in case.arrays:
        sel = case.stored("token_sel")
        case.close("block0_in_sel", taps.inputs["trans_encoder.0"][0][:, sel], atol)
        for i in (0, 1):
            case.close(f"block{i}_out_sel", taps.outputs[f"trans_encoder.{i}"][0][:, sel], atol)
    if "block2_hidden_last" in case.arrays:
        case.close("block2_hidden_last", taps.outputs["trans_encoder.2"][1], atol)


def run_bert_model(case: Case, model, mesh, x) -> None:
    model = load(model, case)
    atol = ATOL if model.backbone is None else ATOL_E2E
    taps = Taps(model, *(f"trans_encoder.{i}" for i in range(3)))
    with torch.no_grad():
        out = model(x)
    check_outputs(case, out, atol)
    check_regressed(case, out, atol)
    check_blocks(case, model, mesh, taps, atol)
    with torch.no_grad():
        check_outputs(case, model.prepare()(x), atol)


def run_metro(case: Case) -> None:
    from tore_fast.models.mesh.metro import METRO, METROConfig

    mesh, kind = template_mesh(case)
    pooled = "conv_learn_tokens.weight" not in case.meta["state_dict"]
    model = METRO(METROConfig(**bert_fields(case), mesh=kind, pooled=pooled), mesh)
    fed = "features_pooled" if "input.features_pooled" in case.meta["inputs"] else "features"
    run_bert_model(case, model, mesh, images(case) if model.backbone is not None else case.input(fed))


def run_metro_tore(case: Case) -> None:
    from tore_fast.models.mesh.metro_tore import METRO_TORE, METROToreConfig

    c = case.config
    mesh, kind = template_mesh(case)
    config = METROToreConfig(
        **bert_fields(case),
        mesh=kind,
        dim_3=c.get("model_dim_3", 128),
        feedforward_3=c.get("feedforward_dim_3", 512),
        heads_3=c.get("nhead_3", 8),
        layers_3=c.get("num_enc_layers_3", 3),
    )
    model = METRO_TORE(config, mesh)
    run_bert_model(case, model, mesh, model_input(case))


def run_graphormer(case: Case) -> None:
    from tore_fast.models.mesh.graphormer import MeshGraphormer, MeshGraphormerConfig

    mesh, kind = template_mesh(case)
    grid_dim = case.meta["state_dict"]["grid_feat_dim.weight"][1]
    model = MeshGraphormer(MeshGraphormerConfig(**bert_fields(case), mesh=kind, grid_dim=grid_dim), mesh)
    fed = images(case) if model.backbone is not None else (case.input("features_pooled"), case.input("grid_features"))
    run_bert_model(case, model, mesh, fed)


def run_smpl_regressor(case: Case) -> None:
    from tore_fast.layers.smpl_regressor import SMPLParameterRegressor

    vertices = case.input("vertices_1723")
    model = SMPLParameterRegressor(vertices.shape[1])
    model.load_state_dict(case.state_dict(), strict=True)
    with torch.no_grad():
        rotmat, betas = model.eval()(vertices)
        case.close("raw", model.regressor(vertices.flatten(1)), ATOL)
    case.close("pred_rotmat", rotmat, ATOL)
    case.close("pred_betas", betas, ATOL)
