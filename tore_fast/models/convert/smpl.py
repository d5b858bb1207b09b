"""Official files of the FastHMR family -> our models, strictly: HMR2.0, CameraHMR, HumanFoV, DenseKP, MLD.

In: a Lightning .ckpt, a torch file or .safetensors. Out: a model in eval mode whose sizes were read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .._weights import load_strict
from ..smpl.camerahmr import CameraHMR, CameraHMRConfig
from ..smpl.densekp import DenseKP, DenseKPConfig
from ..smpl.hmr2 import HMR2, HMR2Config
from ..smpl.humanfov import HumanFoV
from .files import read_state_dict

IGNORED = re.compile(r"(discriminator|smpl|smpl_layer|smpl_gt|mesh_renderer|renderer|criterion)\.|initialized$|loss")


def _count(state: dict[str, Tensor], pattern: str) -> int:
    found = {int(m[1]) for k in state if (m := re.match(pattern, k))}
    return len(found)


def _sizes(state: dict[str, Tensor], head: str, what: str) -> dict:
    """Config fields of backbone and decoder from tensor shapes."""
    try:
        dim = state["backbone.pos_embed"].shape[-1]
        layer = f"{head}.transformer.transformer.layers.0"
        inner = state[f"{layer}.1.fn.to_q.weight"].shape[0]
        mlp = state["backbone.blocks.0.mlp.fc1.weight"].shape[0] / dim
        fields = {
            "embed_dim": dim,
            "depth": _count(state, r"backbone\.blocks\.(\d+)\."),
            "num_heads": dim // 80 if dim % 80 == 0 else dim // 64,
            "mlp_ratio": mlp,
            "decoder_depth": _count(state, rf"{re.escape(head)}\.transformer\.transformer\.layers\.(\d+)\."),
            "decoder_heads": inner // 64,
            "decoder_mlp_dim": state[f"{layer}.2.fn.net.0.weight"].shape[0],
            "decoder_dim": state[f"{layer}.2.fn.net.3.weight"].shape[0],
        }
    except KeyError as e:
        raise ValueError(f"{what}: the file has no {e.args[0]!r}; expected the official layout") from None
    return fields


def _load(build: Callable[[], nn.Module], state: dict[str, Tensor], what: str) -> nn.Module:
    """Strict; the model is laid out without memory or random initialisation and takes over the file's tensors."""
    with torch.device("meta"):
        model = build()
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    load_strict(model, state, what, assign=True)
    return model.eval()


NAMES = {"hmr2": "hmr2_vith", "camerahmr": "camerahmr_vith", "humanfov": "humanfov", "densekp": "densekp_vith"}


def load_hmr2(path: str | Path, **overrides) -> HMR2:
    """HMR2.0 from its Lightning file (`epoch=35-step=1000000.ckpt`); discriminator and SMPL buffers are left out.

    Args:
        overrides: HMR2Config fields that weights do not tell (num_heads, keep_tokens, ...).
    """
    state = {k: v for k, v in read_state_dict(path).items() if not IGNORED.match(k)}
    fields = _sizes(state, "smpl_head", str(path))
    token = state["smpl_head.transformer.to_token_embedding.weight"].shape[1]
    fields["query"] = "zero" if token == 1 else "mean_shape"
    return _load(lambda: HMR2(HMR2Config(**{**fields, **overrides})), state, str(path))


def load_camerahmr(path: str | Path, fov_path: str | Path | None = None, **overrides) -> CameraHMR:
    """CameraHMR from its checkpoint, the field-of-view net from the same file (`cam_model.*`) or from `fov_path`."""
    state = {k: v for k, v in read_state_dict(path).items() if not IGNORED.match(k)}
    if fov_path is not None:
        state = {k: v for k, v in state.items() if not k.startswith("cam_model.")}
        state.update({f"cam_model.{k}": v for k, v in read_state_dict(fov_path).items()})
    fields = _sizes(state, "smpl_head", str(path))
    fields["fov_net"] = any(k.startswith("cam_model.") for k in state)
    return _load(lambda: CameraHMR(CameraHMRConfig(**{**fields, **overrides})), state, str(path))


def load_humanfov(path: str | Path) -> HumanFoV:
    """The field-of-view net from its own file (`cam_model_cleaned.ckpt`, 1874 entries)."""
    return _load(HumanFoV, read_state_dict(path), str(path))


def load_densekp(path: str | Path) -> DenseKP:
    """DenseKP from its checkpoint (`backbone.*`, `head.*`)."""
    state = {k: v for k, v in read_state_dict(path).items() if not IGNORED.match(k)}
    fields = _sizes(state, "head", str(path))
    points = state["head.dec_kp.bias"].shape[0] // 3
    config = DenseKPConfig(fields["embed_dim"], fields["depth"], fields["num_heads"], fields["decoder_depth"], points)
    return _load(lambda: DenseKP(config), state, str(path))


def mld_denoiser_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MLD's denoiser keys -> MotionDenoiser's: its second position table `mem_pos` is never read and is dropped."""
    return {k: v for k, v in state.items() if k != "mem_pos.pe"}
