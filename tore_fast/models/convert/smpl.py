"""Official files of the FastHMR family -> our models, strictly: HMR2.0, CameraHMR, HumanFoV, DenseKP, MLD.

In: a Lightning .ckpt, a torch file or .safetensors. Out: a model in eval mode whose sizes were read off the tensors.
Lightning files carry settings objects; they are read with an unpickler that knows tensors and plain containers only and
puts an empty stand-in where any other class or function is named, so nothing of the file is ever executed.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .._weights import load_strict, read_safetensors, unreadable
from ..smpl.camerahmr import CameraHMR, CameraHMRConfig
from ..smpl.densekp import DenseKP, DenseKPConfig
from ..smpl.hmr2 import HMR2, HMR2Config
from ..smpl.humanfov import HumanFoV

IGNORED = re.compile(r"(discriminator|smpl|smpl_layer|smpl_gt|mesh_renderer|renderer|criterion)\.|initialized$|loss")


class _StandIn:
    """Takes the place of any class a checkpoint names beside tensors; keeps nothing, does nothing."""

    def __new__(cls, *_args, **_kwargs):
        return super().__new__(cls)

    def __init__(self, *_args, **_kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __call__(self, *_args, **_kwargs):
        return _StandIn()

    def append(self, _item):
        pass

    def extend(self, _items):
        pass

    def __setitem__(self, _key, _value):
        pass


_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch" and name.endswith("Storage") and isinstance(getattr(torch, name, None), type):
            return getattr(torch, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _StandIn


# torch.load takes a module in place of `pickle`; this one offers the restricted reader only
_inert_pickle = types.ModuleType("inert_pickle")
_inert_pickle.Unpickler = _Unpickler
_inert_pickle.load = lambda f, **kw: _Unpickler(f, **kw).load()
_inert_pickle.loads = lambda b, **kw: _Unpickler(io.BytesIO(b), **kw).load()
_inert_pickle.UnpicklingError = pickle.UnpicklingError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name; wrappers (`state_dict`, `model`) and a `module.` / `model.` prefix are taken off.

    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # settings objects inside: read again, with stand-ins for them
        try:
            data = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert_pickle)
        except Exception as e:
            raise unreadable(path, e) from None
    for wrapper in ("state_dict", "model_state_dict", "model", "model_pos"):
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
            break
    state = {k: v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name; expected a state dict")
    for prefix in ("module.", "model."):
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


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
