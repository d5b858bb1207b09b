"""Official files of the FastHMR family -> our models, strictly: HMR2.0, CameraHMR, HumanFoV, DenseKP, MLD.

In: a Lightning .ckpt, a torch file or .safetensors. Out: a model in eval mode whose sizes were read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._config import make_config
from .._layouts import Layout, register_layout
from .._weights import load_strict, read_state_dict
from .camerahmr import CameraHMR
from .densekp import DenseKP, DenseKPConfig
from .hmr2 import HMR2
from .humanfov import HumanFoV

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


def _load(build: Callable[[], nn.Module], state: dict[str, Tensor], what: str, allow_nonfinite: bool) -> nn.Module:
    """Strict; the model is laid out without memory or random initialisation and takes over the file's tensors."""
    with torch.device("meta"):
        model = build()
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    load_strict(model, state, what, assign=True, allow_nonfinite=allow_nonfinite)
    return model.eval()


def _kept(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not IGNORED.match(k)}


def load_hmr2(
    state: dict[str, Tensor],
    source: str,
    without_topology: bool = False,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> nn.Module:
    """HMR2.0 from its Lightning file (`epoch=35-step=1000000.ckpt`); discriminator and SMPL buffers are left out.

    Args:
        overrides: HMR2Config fields that weights do not tell (num_heads, keep_tokens, ...).
    """
    state = _kept(state)
    fields = _sizes(state, "smpl_head", source)
    token = state["smpl_head.transformer.to_token_embedding.weight"].shape[1]
    fields["query"] = "zero" if token == 1 else "mean_shape"
    config = make_config(HMR2, None, {**fields, **overrides})
    return _load(lambda: HMR2(config), state, source, allow_nonfinite)


def load_camerahmr(
    state: dict[str, Tensor],
    source: str,
    fov_net_file: str | Path | None = None,
    without_topology: bool = False,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> nn.Module:
    """CameraHMR from its checkpoint, the field-of-view net from the same file (`cam_model.*`) or from
    `fov_net_file`."""
    state = _kept(state)
    if fov_net_file is not None:
        state = {k: v for k, v in state.items() if not k.startswith("cam_model.")}
        state.update({f"cam_model.{k}": v for k, v in read_state_dict(fov_net_file).items()})
    fields = _sizes(state, "smpl_head", source)
    fields["fov_net"] = any(k.startswith("cam_model.") for k in state)
    config = make_config(CameraHMR, None, {**fields, **overrides})
    return _load(lambda: CameraHMR(config), state, source, allow_nonfinite)


def load_humanfov(
    state: dict[str, Tensor], source: str, without_topology: bool = False, allow_nonfinite: bool = False
) -> nn.Module:
    """The field-of-view net from its own file (`cam_model_cleaned.ckpt`, 1874 entries)."""
    return _load(HumanFoV, state, source, allow_nonfinite)


def load_densekp(
    state: dict[str, Tensor], source: str, without_topology: bool = False, allow_nonfinite: bool = False
) -> nn.Module:
    """DenseKP from its checkpoint (`backbone.*`, `head.*`)."""
    state = _kept(state)
    fields = _sizes(state, "head", source)
    points = state["head.dec_kp.bias"].shape[0] // 3
    config = DenseKPConfig(fields["embed_dim"], fields["depth"], fields["num_heads"], fields["decoder_depth"], points)
    return _load(lambda: DenseKP(config), state, source, allow_nonfinite)


_POSE, _POINTS = "smpl_head.decpose.bias", "smpl_head.deckp.bias"
_FOV = {"fc3.weight", "backbone.bn1.weight"}
_OFFICIAL: tuple[tuple[str, Callable, Callable], ...] = (
    ("densekp", lambda state: "head.dec_kp.bias" in state, load_densekp),
    ("camerahmr", lambda state: _POSE in state and _POINTS in state, load_camerahmr),
    ("hmr2", lambda state: _POSE in state and _POINTS not in state, load_hmr2),
    ("humanfov", lambda state: _FOV <= state.keys(), load_humanfov),
)
for _name, _fits, _loader in _OFFICIAL:
    register_layout(Layout(_name, _name, _fits, _loader, dropped=lambda key: IGNORED.match(key) is not None))


def mld_denoiser_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MLD's denoiser keys -> MotionDenoiser's: its second position table `mem_pos` is never read and is dropped."""
    return {k: v for k, v in state.items() if k != "mem_pos.pe"}
