"""Official TCFormer files -> our state dicts (models/keypoints/tcformer.py, models/keypoints/tcformer_heads.py) and
configs.

Layouts: classification (`model` or the plain dict), pose (`state_dict`, maybe with `module.` in front, keys backbone.*,
neck.*, keypoint_head.*), and mmpose's (`patch_embed1.projection` for `.proj`; its stem norm eps is 1e-6).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from .._config import make_config
from .._layouts import Layout, register_layout
from .._weights import clean_state_dict, load_strict
from .tcformer import TCFormer, TCFormerConfig
from .tcformer_heads import TCFormerPose, TCFormerPoseConfig

_BACKBONE_FIELDS = (
    "embed_dims",
    "num_heads",
    "mlp_ratios",
    "depths",
    "sr_ratios",
    "sample_ratios",
    "k",
    "qkv_bias",
    "in_chans",
    "block_norm_eps",
    "stem_norm_eps",
    "reduction",
    "parts",
    "knn_form",
)
_NECK_FIELDS = ("out_channels", "num_heads", "mlp_ratios", "sr_ratios", "qkv_bias", "use_sr_layer", "norm_eps")


def convert_tcformer(checkpoint: dict) -> dict[str, Tensor]:
    """State dict in our keys from any of the official layouts; load it with strict=True."""
    state = clean_state_dict(checkpoint)
    return {k.replace("patch_embed1.projection.", "patch_embed1.proj."): v for k, v in state.items()}


def is_mmpose(checkpoint: dict) -> bool:
    """Whether the file has mmpose's stem (then `stem_norm_eps` must be 1e-6)."""
    return any("patch_embed1.projection." in k for k in clean_state_dict(checkpoint))


def _tuples(d: dict) -> dict:
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in d.items()}


def tcformer_config(fields: dict, state: dict[str, Tensor]) -> TCFormerConfig | TCFormerPoseConfig:
    """Config from the fields of an official config (`embed_dims`, ..., `neck`, `head`) and the tensors of its file.

    What the fields leave out (number of classes, heads' channels) is read from the tensors.
    """
    unused = (
        set(fields)
        - set(_BACKBONE_FIELDS)
        - {"neck", "head", "num_classes", "return_map", "drop_path_rate", "nh_list", "nw_list"}
    )
    if unused:
        raise ValueError(f"tcformer_config: unknown fields {sorted(unused)}")
    own = _tuples({k: v for k, v in fields.items() if k in _BACKBONE_FIELDS})
    if own.get("parts") and isinstance(own["parts"][0], (list, tuple)):
        own["parts"] = tuple(n for pair in own["parts"] for n in pair)
    if "nh_list" in fields:  # the development code's names for rows and columns of parts
        own["parts"] = tuple(n for pair in zip(fields["nh_list"], fields["nw_list"]) for n in pair)
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    backbone = TCFormerConfig(**{**own, "num_classes": classes})
    if not any(k.startswith("backbone.") for k in state):
        return backbone
    neck = _tuples({k: v for k, v in (fields.get("neck") or {}).items() if k in _NECK_FIELDS})
    keypoints = state["keypoint_head.final_layer.weight"].shape[0]
    return TCFormerPoseConfig.from_parts(backbone, neck, num_keypoints=keypoints)


def fields_of_state(state: dict[str, Tensor]) -> dict:
    """Official config fields read off the tensor shapes (head dimension 64, as in every published model).

    Args:
        state: in our keys, from `convert_tcformer`.
    """
    prefix = "backbone." if any(k.startswith("backbone.") for k in state) else ""
    fields: dict[str, Any] = {"embed_dims": [], "num_heads": [], "mlp_ratios": [], "depths": [], "sr_ratios": []}
    stage = 1
    while f"{prefix}norm{stage}.weight" in state:
        block = f"{prefix}block{stage}"
        dim = state[f"{prefix}norm{stage}.weight"].shape[0]
        fields["embed_dims"].append(dim)
        fields["num_heads"].append(max(dim // 64, 1))
        fields["mlp_ratios"].append(state[f"{block}.0.mlp.fc1.weight"].shape[0] // dim)
        fields["depths"].append(len({m[1] for k in state if (m := re.match(rf"{re.escape(block)}\.(\d+)\.", k))}))
        sr = state.get(f"{block}.0.attn.sr.weight")
        fields["sr_ratios"].append(1 if sr is None else sr.shape[-1])
        stage += 1
    if stage == 1:
        raise ValueError("fields_of_state: no key norm1.weight (or backbone.norm1.weight): not a TCFormer state dict")
    fields["sample_ratios"] = [0.25] * (stage - 2)
    fields["qkv_bias"] = f"{prefix}block1.0.attn.q.bias" in state
    if prefix:
        dim = state["neck.lateral_convs.0.conv.weight"].shape[0]
        blocks = [f"neck.merge_blocks.{i}" for i in range(stage - 2)]
        ratio = [state[f"{b}.mlp.fc1.weight"].shape[0] // dim for b in blocks]
        fields["neck"] = {
            "out_channels": dim,
            "num_heads": [max(dim // 64, 1)] * (stage - 1),
            "mlp_ratios": [*ratio, ratio[-1]],
            "sr_ratios": fields["sr_ratios"],
            "use_sr_layer": f"{blocks[0]}.attn.sr.weight" in state,
        }
    return fields


def load_tcformer(
    state: dict[str, Tensor],
    source: str,
    without_topology: bool = False,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Model in eval mode from an official file's tensors (classification, pose, mmpose), loaded strictly.

    Args:
        **overrides: config fields that the tensors do not tell (parts, k, ...).

    Raises:
        ValueError: not a TCFormer file, or one that does not fit.
    """
    native = convert_tcformer(state)
    try:
        fields = fields_of_state(native)
        if is_mmpose(state):
            fields["stem_norm_eps"] = 1e-6
        config = tcformer_config(fields, native)
    except KeyError as e:
        raise ValueError(f"{source}: the file has no {e.args[0]!r}; expected a whole TCFormer state dict") from None
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from None
    kind = TCFormerPose if isinstance(config, TCFormerPoseConfig) else TCFormer
    model = kind(make_config(kind, config, overrides))
    load_strict(model, native, source, allow_nonfinite=allow_nonfinite)
    return model.eval()


def _fits(state: dict[str, Tensor]) -> bool:
    return any(key.removeprefix("backbone.").startswith("ctm1.") for key in state)


register_layout(Layout("tcformer", "tcformer", _fits, load_tcformer))
