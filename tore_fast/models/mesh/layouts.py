"""Official checkpoints of FastMETRO, METRO, Mesh Graphormer and TORE: which layout it is, its config, our key names.

In: a flat state dict; out: the model class, its config and the state dict it loads strictly. Our modules have
the official names; only EfficientNet's trunk is called differently, and weights that no forward pass reads are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _layouts
from .._config import make_config
from .._weights import load_strict
from . import fastmetro, graphormer, metro, metro_tore, tore
from ._efficientnet_keys import efficientnet_key
from ._topology import resolve_mesh

_DEAD = ("backbone.classifier.weight", "backbone.classifier.bias", "backbone.fc.weight", "backbone.fc.bias")
_DEAD_PARTS = (".bert.embeddings.", ".bert.pooler.", ".graph_conv.skip_conv.")


def native_key(key: str) -> str | None:
    """Our name of an official key; None if the weight is never used."""
    if key in _DEAD or any(part in key for part in _DEAD_PARTS):
        return None
    if key.startswith("backbone._"):
        name = efficientnet_key(key.removeprefix("backbone."))
        return None if name is None else f"backbone.{name}"
    return key


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict under our names, without weights that no forward pass reads."""
    named = ((native_key(k), v) for k, v in state.items())
    return {k: v for k, v in named if k is not None}


class MeshLayout(NamedTuple):
    upstream: str
    model: type[nn.Module]
    config: type
    marks: tuple[str, ...]  # keys that a file of this layout has
    absent: tuple[str, ...]  # keys that it has not
    fields: Callable[[dict], dict]  # config fields from the shapes


def trunk_of(state: dict) -> str | None:
    """Backbone that the keys of a state dict (or of its shapes) belong to; None without one."""
    for key, name in (
        ("backbone.stage4.0.branches.0.0.conv1.weight", "hrnet_w64"),
        ("backbone.4.0.conv1.weight", "resnet50"),
        ("backbone._conv_stem.weight", "efficientnet_b0"),
        ("backbone.conv_stem.weight", "efficientnet_b0"),
    ):
        if key in state:
            return name
    return None


def _layers(state: dict[str, Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})


def _transformers(state: dict[str, Tensor]) -> dict:
    dim = lambda i: state[f"transformer_{i}.encoder.norm.weight"].shape[0]
    ff = lambda i: state[f"transformer_{i}.encoder.layers.0.linear1.weight"].shape[0]
    return {
        "feature_dim": state["conv_1x1.weight"].shape[1],
        "num_joints": state["joint_token_embed.weight"].shape[0],
        "num_vertices": state["vertex_token_embed.weight"].shape[0],
        "layers": _layers(state, "transformer_1.encoder.layers."),
        "dim_1": dim(1),
        "dim_2": dim(2),
        "feedforward_1": ff(1),
        "feedforward_2": ff(2),
    }


def _fastmetro(state: dict[str, Tensor]) -> dict:
    return {
        **_transformers(state),
        "shared_reduction": "dim_reduce_enc.weight" in state,
        "learned_upsample": "coarse2intermediate_upsample.weight" in state,
        "smpl_head": "smpl_parameter_regressor.regressor.3.weight" in state,
    }


def _tore(state: dict[str, Tensor]) -> dict:
    fields = {
        **_transformers(state),
        "dim_3": state["transformer_3.encoder.norm.weight"].shape[0],
        "feedforward_3": state["transformer_3.encoder.layers.0.linear1.weight"].shape[0],
    }
    if "token_selector_fc.weight" not in state:  # GTR alone
        return {**fields, "selector": "none", "keep_ratio": 1.0}
    kept, hidden = state["token_selector_fc.weight"].shape
    return {**fields, "selector_dim": hidden, "keep_ratio": _keep_ratio(kept, 49)}


def _keep_ratio(kept: int, cells: int) -> float:
    """The published ratio that keeps `kept` of 49 tokens, else one that does."""
    for ratio in (1.0, 0.8, 0.5, 0.25):
        if int(cells * ratio) == kept:
            return ratio
    return (kept + 0.5) / cells


def _blocks(state: dict[str, Tensor]) -> dict:
    bert = [f"trans_encoder.{i}.bert" for i in range(3)]
    embed = [state[f"{b}.img_embedding.weight"].shape for b in bert]
    fields = {
        "feature_dim": embed[0][1] - 3,
        "num_vertices": state["upsampling.weight"].shape[1],
        "num_joints": 14 if "upsampling2.weight" in state else 21,
        "hidden": tuple(s[0] for s in embed),
        "widths": tuple(s[1] for s in embed[1:]),
        "feedforward": tuple(state[f"{b}.encoder.layer.0.intermediate.dense.weight"].shape[0] for b in bert),
        "layers": _layers(state, f"{bert[0]}.encoder.layer."),
        "positions": state[f"{bert[0]}.position_embeddings.weight"].shape[0],
    }
    if "cam_param_fc2.weight" in state:
        fields["camera_dim"], tokens = state["cam_param_fc2.weight"].shape
        fields["camera_from_joints"] = tokens != fields["num_vertices"]
    return fields


def _metro(state: dict[str, Tensor]) -> dict:
    return {**_blocks(state), "pooled": "conv_learn_tokens.weight" not in state}


def _metro_tore(state: dict[str, Tensor]) -> dict:
    return {
        **_blocks(state),
        "num_joints": state["conv_learn_tokens.weight"].shape[0],
        "dim_3": state["transformer_3.encoder.norm.weight"].shape[0],
        "feedforward_3": state["transformer_3.encoder.layers.0.linear1.weight"].shape[0],
        "layers_3": _layers(state, "transformer_3.encoder.layers."),
    }


def _graphormer(state: dict[str, Tensor]) -> dict:
    return {**_blocks(state), "grid_dim": state["grid_feat_dim.weight"].shape[1]}


_T1, _EMBED = "transformer_1.encoder.norm.weight", "trans_encoder.0.bert.img_embedding.weight"
_NSR, _GRID = "transformer_3.encoder.norm.weight", "grid_feat_dim.weight"
LAYOUTS = {
    "FastMETRO": MeshLayout("fastmetro", fastmetro.FastMETRO, fastmetro.FastMETROConfig, (_T1,), (_NSR,), _fastmetro),
    "TORE on FastMETRO": MeshLayout("tore", tore.FastMETRO_TORE, tore.FastMETROToreConfig, (_T1, _NSR), (), _tore),
    "METRO": MeshLayout("metro", metro.METRO, metro.METROConfig, (_EMBED,), (_NSR, _GRID), _metro),
    "TORE on METRO": MeshLayout(
        "tore", metro_tore.METRO_TORE, metro_tore.METROToreConfig, (_EMBED, _NSR), (), _metro_tore
    ),
    "Mesh Graphormer": MeshLayout(
        "graphormer", graphormer.MeshGraphormer, graphormer.MeshGraphormerConfig, (_EMBED, _GRID), (), _graphormer
    ),
}


def nearest(state: dict[str, Tensor]) -> str:
    """Sentence about the layout that shares most keys with `state`."""
    have = {k for k in to_native(state) if not k.startswith("backbone.")}
    best, score, keys = "", -1.0, []
    for name, layout in LAYOUTS.items():
        with torch.device("meta"):
            mesh = "free"
            model = layout.model(layout.config(backbone=None), mesh)
        reference = list(model.state_dict())
        shared = len(have.intersection(reference)) / max(1, len(have.union(reference)))
        if shared > score:
            best, score, keys = name, shared, reference
    missing = [k for k in keys if k not in have][:3]
    extra = sorted(have.difference(keys))[:3]
    if not score:
        return f"it shares no name with any of them and has {', '.join(extra) or 'nothing but a backbone'}"
    return (
        f"nearest is {best} ({score:.0%} of the names); the file lacks {', '.join(missing) or 'nothing'} "
        f"and has {', '.join(extra) or 'nothing'} besides"
    )


def config_of(state: dict[str, Tensor], name: str, source: str, **overrides: Any) -> Any:
    """Config of a recognised state dict; heads and dropout are not in the weights and take the published values."""
    layout = LAYOUTS[name]
    try:
        fields = layout.fields(state)
    except (KeyError, ValueError, IndexError) as e:
        raise ValueError(f"{source}: looks like {name}, but {e} is missing or misshapen; {nearest(state)}") from None
    mesh = "mano" if fields["num_vertices"] == 195 else "smpl"
    return make_config(layout.model, None, {"backbone": trunk_of(state), "mesh": mesh, **fields, **overrides})


def stand_in_mesh(config: Any) -> Any:
    """A mesh of the right size for checking keys where the licensed topology is not at hand."""
    free = resolve_mesh("free_hand" if config.num_vertices == 195 else "free")
    return dataclasses.replace(free, name=config.mesh)


def _load(name: str) -> Any:
    def load(
        state: dict[str, Tensor],
        source: str,
        mesh: Any = None,
        mesh_data: Any = None,
        without_topology: bool = False,
        allow_nonfinite: bool = False,
        **overrides: Any,
    ) -> nn.Module:
        config = config_of(state, name, source, **overrides)
        model = LAYOUTS[name].model(config, stand_in_mesh(config) if without_topology else mesh, mesh_data)
        load_strict(model, to_native(state), source, allow_nonfinite=allow_nonfinite)
        return model.eval()

    return load


def _fits(layout: MeshLayout) -> Any:
    return lambda state: all(k in state for k in layout.marks) and not any(k in state for k in layout.absent)


for _name, _layout in LAYOUTS.items():
    _layouts.register_layout(
        _layouts.Layout(
            _name, _layout.upstream, _fits(_layout), _load(_name), dropped=lambda key: native_key(key) is None
        )
    )
_layouts.register_explanation(nearest)
