"""Code as others write it, for comparisons: within a context the package computes with dense attention or torch's
products.

The package itself knows nothing of it: names of its modules are replaced for as long as the context lasts.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from unittest import mock

import torch.nn.functional as F
from torch import Tensor

from tore_fast.layers import attention, bert_block
from tore_fast.layers.transformer import Transformer
from tore_fast.ops import MeshTopology

_linear = importlib.import_module("tore_fast.ops.linear")  # the package's name for the function hides the module


@contextlib.contextmanager
def torch_products() -> Iterator[None]:
    """Products are `F.linear`."""
    with mock.patch.object(_linear, "_auto", lambda *args: "reference"):
        yield


@contextlib.contextmanager
def dense_attention(fused: bool = False, masks: dict[tuple, Tensor] | None = None) -> Iterator[None]:
    """Attention of the mesh models is dense and products are torch's.

    Args:
        fused: torch's masked kernel; else like the official code: weights are formed, their mean over heads is made and
            dropped, and learned queries are repeated for each image.
        masks: keeps topologies as dense masks from one use to the next, as the official code does.
    """
    kept: dict[tuple, Tensor] = {} if masks is None else masks

    def mask_of(topology: MeshTopology) -> Tensor:
        key = (id(topology.col_idx), topology.joints)
        if key not in kept:
            kept[key] = topology.dense_mask()
        return kept[key]

    def attend(q, k, v, topology=None, dropout_p=0.0, maps=None, mask=None):
        mask = mask if topology is None else mask_of(topology)
        if fused and maps is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
        weights = attention.attention_weights(q, k, mask)
        mean = weights.mean(1)
        if maps is not None:
            maps.append(mean)
        return F.dropout(weights, dropout_p) @ v

    forward = Transformer.forward

    def per_image(self, camera, tokens, queries, *args, **kwargs):
        return forward(self, camera, tokens, queries.expand(tokens.shape[0], -1, -1), *args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_products())
        stack.enter_context(mock.patch.object(attention, "attend", attend))
        stack.enter_context(mock.patch.object(bert_block, "attend", attend))
        if not fused:
            stack.enter_context(mock.patch.object(Transformer, "forward", per_image))
        yield
