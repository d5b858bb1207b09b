"""Names of the video pose hosts for any window and pruning: [hot_|tpc_]HOST_F[_nNfK], as in `hot_mixste_135_n2f45`.

In: a name. Out: a registry entry whose builder is the host with those settings, or None where the name is not of this
form. The sizes of the papers are registered in the hosts' own files; this reads every other one. Settings that the host
cannot have are refused by its own checks (models/lifting/_base.py) when it is built.
"""

from __future__ import annotations

import re

from .._registry import ModelEntry, register_name_rule
from ._base import JOINTS, PrunableHost, is_seq2frame, pose_tags
from .mhformer import Mhformer
from .mixste import Mixste
from .motionagformer import Motionagformer
from .motionbert import FULL, Motionbert, MotionbertConfig

# host as it is named: (model, fields, published n). Unpruned MotionBERT is called lite where it is; pruned, it is
# lite unless it is called full.
_HOSTS: dict[str, tuple[type[PrunableHost], dict, int]] = {
    "mixste": (Mixste, {}, 3),
    "mhformer": (Mhformer, {}, 1),
    "motionagformer": (Motionagformer, {}, 7),
    "motionbert": (Motionbert, {}, 1),
    "motionbert_lite": (Motionbert, {}, 1),
    "motionbert_full": (Motionbert, FULL, 1),
}
_FORM = re.compile(
    rf"(?:(hot|tpc)_)?({'|'.join(sorted(_HOSTS, key=len, reverse=True))})_([1-9]\d*)(?:_n(\d+)f([1-9]\d*))?"
)


@register_name_rule
def host_by_name(name: str) -> ModelEntry | None:
    """Entry of a name of the form above; without n and f the published n and a third of the frames."""
    found = _FORM.fullmatch(name)
    if found is None:
        return None
    kind, host, frames, n, f = found[1], found[2], int(found[3]), found[4], found[5]
    if n is not None and kind is None:
        raise ValueError(
            f"create_model: {name!r} names a pruning; begin with hot_ (all frames recovered) or tpc_ (middle frame)"
        )
    model, fields, block = _HOSTS[host]
    fields = {**fields, "frames": frames}
    if host == "motionbert" and kind is None:
        fields |= FULL
    if model is Motionbert:
        fields["max_frames"] = max(frames, MotionbertConfig.max_frames)  # longer windows need embeddings of their own
    if kind is not None:
        fields |= {
            "prune_block": block if n is None else int(n),
            "keep_frames": max(frames // 3, 1) if f is None else int(f),
        }
        fields |= {"recovery": "tra"} if kind == "hot" else {"keep_center": True}
    tags = pose_tags(name, is_seq2frame(model, fields))
    shape = (frames, JOINTS, model.in_channels)
    return ModelEntry(name, model, fields, None, shape, tags)
