"""FLOP counters know our kernels: the formulas beside the ops, against the products of plain attention."""

from __future__ import annotations

import pytest
import torch
from ops.matrix import CASES
from torch.utils.flop_counter import FlopCounterMode

from tore_fast import ops
from tore_fast.ops._dispatch import backend_reason

pytestmark = pytest.mark.skipif(backend_reason("cpu") is not None, reason=f"no kernels: {backend_reason('cpu')}")
FREE = {
    "cluster_merge",
    "token_map",
    "bipartite_match",
    "ppt_select",
    "rasterize",
    "fit_landmarks",
}  # no products, or not counted


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", [c for c in CASES if c.stem not in FREE], ids=str)
def test_every_op_with_products_is_counted(case):
    t = case.make(2, 12, 4)
    assert flops(lambda: case.call(t, case.backend(t))) > 0


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("backward", [False, True])
def test_full_attention_counts_as_two_products(backward):
    """A mesh whose pairs are all open, and attention without lengths."""
    q, k, v = (torch.randn(2, 3, 10, 8, requires_grad=backward) for _ in range(3))
    topology = ops.mesh_topology(torch.ones(7, 7), 3)
    forward = flops(lambda: (q.detach() @ k.detach().mT).softmax(-1) @ v.detach())
    want = forward + 5 * forward // 2 if backward else forward

    def run(attention):
        out = attention()
        if backward:
            out.sum().backward()

    assert flops(lambda: run(lambda: ops.mesh_attention(q, k, v, topology, impl="cpu"))) == want
    assert flops(lambda: run(lambda: ops.pruned_attention(q, k, v, impl="cpu"))) == want
