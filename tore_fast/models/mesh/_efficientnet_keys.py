"""Key maps between timm's trunks and the official checkpoints' names, where they differ.

In: keys of mesh/layouts.py; out: the same tensors under the names models/backbones uses.
"""

from __future__ import annotations

_BLOCK = (  # efficientnet_pytorch -> timm, for a block with and without expansion
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
)
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_SE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage of EfficientNet-b0; only the first stage has no expansion
DEAD_EFFICIENTNET = ("_fc.weight", "_fc.bias")


def efficientnet_key(key: str) -> str | None:
    """timm's name of an efficientnet_pytorch key (without "backbone."); None for the unused classifier.

    Example:
        >>> efficientnet_key("_blocks.1._project_conv.weight")
        'blocks.1.0.conv_pwl.weight'
    """
    if key in DEAD_EFFICIENTNET:
        return None
    head, *rest = key.split(".")
    if head != "_blocks":
        return ".".join([_STEM.get(head, head), *rest])
    index = int(rest[0])
    stage = block = 0
    for stage, count in enumerate(_REPEATS):  # noqa: B007
        if index < count:
            block = index
            break
        index -= count
    names = {**_BLOCK[0 if stage else 1], **_SE}
    return ".".join(["blocks", str(stage), str(block), names.get(rest[1], rest[1]), *rest[2:]])
