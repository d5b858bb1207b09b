"""Runners of the FastHMR golden cases: hosts, ToMe ViT, motion models, IK, schedule, layer-merge traces.

Tolerance: 2e-4 * max(1, max|reference|), float32 on CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tore_fast.geometry import camera
from tore_fast.layers import ik
from tore_fast.layers.decoder_head import DecoderConfig
from tore_fast.layers.eclm import eclm_search
from tore_fast.layers.mask_tome import MergeConfig
from tore_fast.models.backbones.vit import ViT, ViTConfig
from tore_fast.models.motion.denoiser import (
    DenoiserConfig,
    MotionDenoiser,
    rescale_zero_terminal_snr,
    scaled_linear_betas,
    timestep_embedding,
)
from tore_fast.models.motion.vae import MotionVAE, MotionVAEConfig
from tore_fast.models.smpl import layouts as convert
from tore_fast.models.smpl.camerahmr import CameraHMR, CameraHMRConfig
from tore_fast.models.smpl.densekp import DenseKPHead
from tore_fast.models.smpl.hmr2 import HMR2, HMR2Config, SMPLHead
from tore_fast.models.smpl.humanfov import HumanFoV

from .case import Case

REL = 2e-4


def check(case: Case, name: str, got: Tensor) -> None:
    if name not in case.arrays:
        return
    scale = max(1.0, float(np.abs(case.arrays[name]).max(initial=0.0)))
    case.close(name, got.float(), atol=REL * scale)


def ready(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(state, strict=True)
    return module.eval()


def vit_config(cfg: dict) -> ViTConfig:
    return ViTConfig(
        img_size=tuple(cfg["img_size"]),
        patch_size=cfg["patch_size"],
        embed_dim=cfg["embed_dim"],
        depth=cfg["depth"],
        num_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
        qkv_bias=cfg["qkv_bias"],
        drop_path_rate=cfg.get("drop_path_rate", 0.0),
        ratio=cfg.get("ratio", 1),
    )


def decoder_config(cfg: dict) -> DecoderConfig:
    names = ("depth", "heads", "dim_head", "mlp_dim", "context_dim")
    return DecoderConfig(**{n: cfg[n] for n in names}, dim=cfg.get("dim", 1024))


def tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def block_outputs(vit: ViT) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    vit.patch_embed.register_forward_hook(lambda m, i, o: found.__setitem__("patch_embed", o))
    for n, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda m, i, o, n=n: found.__setitem__(f"block{n}", o))
    return found


def run_vit(case: Case) -> None:
    vit = ready(ViT(vit_config(case.config)), case.state_dict())
    seen = block_outputs(vit)
    check(case, "features", vit(case.input("img")))
    for name, value in seen.items():
        check(case, name, value[:, ::16, ::8])


def run_tome_vit(case: Case) -> None:
    cfg = vit_config(case.config["VIT"])
    r = case.config["r"]
    merging = MergeConfig(
        r=[r] * cfg.depth if isinstance(r, int) else r,
        prop_attn=case.config["prop_attn"],
        order="tome",
        class_token=case.config.get("class_token", False),
        distill_token=case.config.get("distill_token", False),
        track_source=True,
    )
    vit = ready(ViT(cfg, merging), case.state_dict())
    seen = block_outputs(vit)
    out = vit.forward_tokens(case.input("img"))
    for name, value in seen.items():
        check(case, f"{name}_sub", value[..., ::16])
    check(case, "tokens", out.tokens)
    check(case, "size", out.size[..., None])
    check(case, "source", out.source)


def check_head(case: Case, out, betas: str = "betas") -> None:
    check(case, "global_orient", out.rotations[:, :1])
    check(case, "body_pose", out.rotations[:, 1:])
    check(case, betas, out.betas)
    check(case, "pred_cam", out.cam)
    check(case, "token_out", out.token)
    if out.keypoints is not None:
        check(case, "pred_kp", out.keypoints.flatten(1))


def run_hmr2_head(case: Case) -> None:
    c = case.config
    query = {"zero": "zero", "mean_shape": "mean_shape"}[c.get("TRANSFORMER_INPUT", "zero")]
    head = SMPLHead(
        decoder_config(c["TRANSFORMER_DECODER"]),
        query,
        c.get("JOINT_REP", "6d"),
        c.get("IEF_ITERS", 1),
        c.get("NUM_BODY_JOINTS", 23),
    )
    ready(head, case.state_dict())
    out = head(tokens(case.input("features")))
    check_head(case, out)
    check(case, "rot6d_last", head.decpose(out.token))


def run_camera_head(case: Case) -> None:
    c = case.config
    keypoints = case.meta["state_dict"]["deckp.bias"][0] // 2
    head = SMPLHead(
        decoder_config(c["HEAD"]),
        "bbox",
        "6d",
        c.get("IEF_ITERS", 1),
        c.get("NUM_POSE_PARAMS", 23),
        c.get("NUM_BETAS", 10),
        keypoints,
    )
    ready(head, case.state_dict())
    check_head(case, head(tokens(case.input("features")), bbox_info=case.input("bbox_info")))


def run_densekp_head(case: Case) -> None:
    head = ready(DenseKPHead(decoder_config(case.config["HEAD"]), case.config["NUM_DENSEKP_SMPL"]), case.state_dict())
    (name,) = case.arrays
    check(case, name, head(tokens(case.input("features"))))


def full_config(cls: type, case: Case, **extra):
    v, h = case.config["VIT"], case.config["HEAD"]
    return cls(
        embed_dim=v["embed_dim"],
        depth=v["depth"],
        num_heads=v["num_heads"],
        mlp_ratio=v["mlp_ratio"],
        decoder_depth=h["depth"],
        decoder_heads=h["heads"],
        decoder_dim_head=h["dim_head"],
        decoder_mlp_dim=h["mlp_dim"],
        **extra,
    )


def run_hmr2_full(case: Case) -> None:
    model = ready(HMR2(full_config(HMR2Config, case)), case.state_dict())
    img = case.input("img")
    out = model(img)
    check_head(case, out)
    check(case, "pred_cam_t", out.cam_t)
    check(case, "features_sub", model.backbone(img[..., 32:-32])[:, ::16])
    size = case.input("img_size_wh")
    focal = camera.default_focal(size)
    check(case, "scaled_focal_length", focal[0])
    full = camera.full_translation(
        out.cam, focal=focal, crop=case.input("box_size"), offset=case.input("box_center") - size / 2
    )
    check(case, "pred_cam_t_full", full)
    check(case, "focal_length", torch.full((img.shape[0], 2), camera.CROP_FOCAL_PX))


def run_camera_full(case: Case) -> None:
    model = ready(CameraHMR(full_config(CameraHMRConfig, case, fov_net=False)), case.state_dict())
    img = case.input("img")
    size = case.input("img_size").flip(1)  # stored as (H, W)
    focal = case.input("cam_int")[:, 0, 0]
    center, side = case.input("box_center"), case.input("box_size")
    out = model(img, box_center=center, box_size=side, image_size=size, focal=focal)
    check_head(case, out)
    check(case, "features_sub", model.backbone(img[..., 32:-32])[:, ::16])
    check(case, "pred_cam_t_full", camera.full_translation(out.cam, focal=focal, crop=side, offset=center - size / 2))
    check(case, "fl_h", focal)


def run_flnet(case: Case) -> None:
    model = ready(HumanFoV(), case.state_dict())
    images = case.input("images")
    check(case, "cam", model(images))
    check(case, "feat", model.backbone(images))


def _run_vae(case: Case) -> None:
    c = case.config
    if c.get("position_embedding", "learned") != "learned" or c["ablation"].get("PE_TYPE", "mld") != "mld":
        raise NotImplementedError("MotionVAE has learned positions only")
    tokens_, dim = c["latent_dim"]
    vae = MotionVAE(
        MotionVAEConfig(
            arch=c["arch"],
            num_features=c["nfeats"],
            latent_tokens=tokens_,
            latent_dim=dim,
            ff_size=c["ff_size"],
            encoder_layers=c["num_layers"],
            decoder_layers=c["num_layers"],
            heads=c["num_heads"],
            activation=c["activation"],
            pre_norm=c["normalize_before"],
            dist_mlp=c["ablation"].get("MLP_DIST", False),
        )
    )
    ready(vae, case.state_dict())
    pose = case.input("pose")
    mean, log_var = vae.encode(pose)
    check(case, "mu", mean.transpose(0, 1))
    check(case, "std", (0.5 * log_var).exp().transpose(0, 1))
    check(case, "decoded", vae.decode(case.input("z").transpose(0, 1), pose.shape[1]))


def _run_denoiser(case: Case) -> None:
    c = case.config
    if c.get("arch", "trans_enc") != "trans_enc":
        raise NotImplementedError("MotionDenoiser is the trans_enc form only")
    tokens_, dim = c["latent_dim"]
    cfg = DenoiserConfig(
        latent_tokens=tokens_,
        latent_dim=dim,
        condition_dim=c["text_encoded_dim"],
        time_dim=c["text_encoded_dim"],
        ff_size=c["ff_size"],
        layers=c["num_layers"],
        heads=c["num_heads"],
        activation=c["activation"],
        pre_norm=c["normalize_before"],
        skip=c["ablation"].get("SKIP_CONNECT", True),
        condition_relu=True,
        flip_sin_to_cos=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
    )
    model = ready(MotionDenoiser(cfg), convert.mld_denoiser_state(case.state_dict()))
    t = case.input("timestep")
    check(case, "out", model(case.input("z"), t, case.input("cond")))
    check(case, "time_proj", timestep_embedding(t, cfg.time_dim, cfg.flip_sin_to_cos, cfg.freq_shift))


def run_ik(case: Case) -> None:
    tree = (
        ik.IKTree(tuple(case.arrays["parents"].tolist()), tuple(case.arrays["children"].tolist()))
        if "parents" in case.arrays
        else ik.SMPL_TREE
    )
    got = ik.hybrik_ik(
        case.input("joints"), case.input("phis"), case.input("rest_pose"), case.config["mode"], tree=tree
    )
    check(case, "rot_mats", got)


def run_schedule(case: Case) -> None:
    c = case.config
    if c["beta_schedule"] != "scaled_linear":
        raise NotImplementedError(f"beta_schedule {c['beta_schedule']}")
    betas = scaled_linear_betas(c["num_train_timesteps"], c["beta_start"], c["beta_end"])
    alphas = rescale_zero_terminal_snr(betas)
    case.close("betas", betas.float(), atol=1e-7)
    case.close("alphas_bar", (1 - betas).cumprod(0).float(), atol=1e-5)
    case.close("alphas_bar_zero_snr", alphas.float(), atol=1e-5)
    new_betas = 1 - alphas / torch.cat((torch.ones(1, dtype=alphas.dtype), alphas[:-1]))
    case.close("betas_zero_snr", new_betas.float(), atol=1e-4)  # a quotient of float32 numbers near zero upstream
    assert alphas[-1] == 0


def run_traces(case: Case) -> None:
    for name, c in case.meta["cases"].items():

        def error(groups, c=c):
            return c["base"] + sum(c["w"][g[-1]] * (len(g) - 1) for g in groups)

        found = eclm_search(c["L"], error, c["tau"])
        want = [(e["low"], e["high"], e["accept"]) for e in c["evaluations"]]
        assert [(e.low, e.high, e.accept) for e in found.trace] == want, f"{name}: evaluations"
        np.testing.assert_allclose([e.error for e in found.trace], [e["err"] for e in c["evaluations"]], atol=1e-6)
        assert [list(g) for g in found.plan.groups] == c["groups_with_tail_commit"], f"{name}: with tail commit"
        assert [list(g) for g in found.plan_as_printed.groups] == c["groups_as_printed"], f"{name}: as printed"
        assert found.plan.num_layers == c["n_layers_with_tail"]


RUNNERS: tuple[tuple[str, Callable[[Case], None]], ...] = (
    ("ToMeBlock/ToMeAttention", run_tome_vit),
    ("hmr2.models.backbones.vit.ViT", run_vit),
    ("hmr2.models.heads.smpl_head.SMPLTransformerDecoderHead", run_hmr2_head),
    ("hmr2.models.hmr2.HMR2", run_hmr2_full),
    ("core.heads.smpl_head_cliff", run_camera_head),
    ("core.camerahmr_model.CameraHMR", run_camera_full),
    ("core.heads.smpl_head_keypoints", run_densekp_head),
    ("core.cam_model.fl_net", run_flnet),
    ("mld.models.architectures.mld_vae", _run_vae),
    ("mld.models.architectures.mld_denoiser", _run_denoiser),
    ("hybrik.models.layers.smpl.lbs", run_ik),
    ("scaled_linear schedule", run_schedule),
    ("ECLM search loop", run_traces),
)


KEYS: tuple[tuple[str, Callable[[Case], None]], ...] = (  # of a case whose name says nothing
    ("global_motion_token", _run_vae),
    ("time_embedding.linear_1.weight", _run_denoiser),
)


@torch.inference_mode()
def _guarded(run: Callable[[Case], None], case: Case) -> None:
    run(case)


def runner(case: Case) -> Callable[[Case], None] | None:
    for start, run in RUNNERS:
        if case.model.startswith(start):
            return lambda c, run=run: _guarded(run, c)
    for key, run in KEYS:
        if key in (case.meta.get("state_dict") or {}):
            return lambda c, run=run: _guarded(run, c)
    return None
