"""Official checkpoints of MixSTE, MotionBERT, MHFormer, MotionAGFormer and their HoT / TPC versions -> our modules,
strictly.

In: a .pth, .bin or .safetensors file. Out: a model in eval mode. Our modules keep the official key names, so loading is
unwrapping (`model_pos`, `module.`), dropping profiler buffers and reading the sizes off the tensor shapes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._config import make_config
from .._layouts import Layout, register_layout
from .._registry import ModelEntry
from .._weights import load_strict
from .mhformer import Mhformer, MhformerConfig
from .mixste import Mixste, MixsteConfig
from .motionagformer import Motionagformer, MotionagformerConfig
from .motionbert import Motionbert, MotionbertConfig

HOSTS = {
    "mixste": (Mixste, MixsteConfig),
    "motionbert": (Motionbert, MotionbertConfig),
    "mhformer": (Mhformer, MhformerConfig),
    "motionagformer": (Motionagformer, MotionagformerConfig),
}
# n is not stored in the weights; these are the published settings
DEFAULT_PRUNE_BLOCK = {"mixste": 3, "motionbert": 1, "mhformer": 1, "motionagformer": 7}
SIGNATURE_KEY = {
    "mixste": "STEblocks.0.norm1.weight",
    "motionbert": "blocks_st.0.norm1_s.weight",
    "mhformer": "Transformer_hypothesis.SHR_blocks.0.norm2.weight",
    "motionagformer": "layers.0.att_spatial.norm1.weight",
}


def detect_host(state: dict[str, Tensor]) -> str:
    """Which host a state dict belongs to; ValueError if none."""
    for host, key in SIGNATURE_KEY.items():
        if key in state:
            return host
    raise ValueError(
        f"no known video pose host: expected one of the keys {sorted(SIGNATURE_KEY.values())}, got {list(state)[:3]}..."
    )


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix))


def config_fields(state: dict[str, Tensor]) -> tuple[str, dict]:
    """(host, config fields the shapes determine); heads, n and the pruning rule are not in the weights."""
    host = detect_host(state)
    fields: dict[str, Any]
    shape = lambda key: tuple(state[key].shape)
    try:
        if host == "mixste":
            hidden, dim = shape("STEblocks.0.mlp.fc1.weight")
            frames = shape("Temporal_pos_embed")[1]
            fields = dict(frames=frames, channels=dim, mlp_hidden=hidden, depth=_count(state, "STEblocks."))
        elif host == "motionbert":
            hidden, dim = shape("blocks_st.0.mlp_s.fc1.weight")
            frames = shape("temp_embed")[1]
            fields = dict(
                frames=frames,
                max_frames=frames,
                channels=dim,
                mlp_hidden=hidden,
                rep_channels=shape("head.weight")[1],
                depth=_count(state, "blocks_st."),
            )
        elif host == "mhformer":
            hidden, dim3 = shape("Transformer_hypothesis.SHR_blocks.0.mlp.fc1.weight")
            fields = dict(
                frames=shape("norm_1.weight")[0],
                channels=dim3 // 3,
                mlp_hidden=hidden,
                layers=_count(state, "Transformer_hypothesis.SHR_blocks.") + 1,
                mhg_depth=_count(state, "Transformer_encoder_1.blocks."),
            )
        else:
            hidden, dim = shape("layers.0.att_spatial.mlp.fc1.weight")
            depth = _count(state, "layers.")
            lengths = [shape(f"layers.{i}.graph_temporal.mixer.batch_norm.weight")[0] for i in range(depth)]
            fields = dict(
                frames=lengths[0],
                channels=dim,
                mlp_ratio=hidden // dim,
                depth=depth,
                rep_channels=shape("head.weight")[1],
            )
            if lengths[-1] != lengths[0]:
                fields |= dict(prune_block=lengths.index(lengths[-1]), keep_frames=lengths[-1])
    except KeyError as e:
        raise ValueError(f"{host}: the state dict lacks {e.args[0]}") from e
    if "x_token" in state:
        fields |= dict(recovery="tra", keep_frames=shape("pos_embed_token")[1])
        fields.setdefault("prune_block", DEFAULT_PRUNE_BLOCK[host])
        if shape("x_token")[1] != fields["frames"]:
            fields["recover_frames"] = shape("x_token")[1]
    elif "prune_block" in fields:
        fields["keep_center"] = True
    return host, fields


def model_from_state(
    state: dict[str, Tensor],
    source: str = "state dict",
    without_topology: bool = False,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Model in eval mode with these weights, loaded strictly.

    Args:
        state: state dict without wrappers (`read_state_dict`).
        **overrides: config fields that the weights do not tell: `prune_block` (default: the published n), `heads`, and
            for TPC versions, whose weights are those of the base, `keep_frames`, `keep_center`.
    """
    host, fields = config_fields(state)
    build, _ = HOSTS[host]
    model = build(make_config(build, None, {**fields, **overrides}))
    load_strict(model, state, source, host, allow_nonfinite=allow_nonfinite)
    return model.eval()


def named_model(
    state: dict[str, Tensor], source: str, entry: ModelEntry, allow_nonfinite: bool, given: dict[str, Any]
) -> nn.Module:
    """The registered model with these weights, which must be of its network and window; sizes are read off the weights.

    The name tells the frames and how to prune: TPC's weights are those of the base model, and MotionBERT's hold 243
    frame embeddings whatever the window.
    """
    named = make_config(entry.model, None, {**entry.fields, **given})
    host, found = config_fields(state)
    if host != entry.family:
        raise ValueError(f"{source}: holds weights of {host}, --model {entry.name} is {entry.family}")
    if host == "motionbert":
        found["frames"] = named.frames  # its embeddings are sliced
    elif found["frames"] != named.frames:
        raise ValueError(
            f"{source}: holds weights for {found['frames']} frames, --model {entry.name} has {named.frames}"
        )
    told = {name: getattr(named, name) for name in ("heads", *entry.facts.free_fields)}
    return model_from_state(
        state, source, allow_nonfinite=allow_nonfinite, **{"frames": found["frames"], **told, **given}
    )


register_layout(
    Layout("hot", "hot", lambda state: any(key in state for key in SIGNATURE_KEY.values()), model_from_state)
)
