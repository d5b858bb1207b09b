"""ppt_select: the kept positions against sorting in python, ties, NaN, ratios; gather_tokens and its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from tore_fast.ops import gather_tokens, ppt_select
from tore_fast.ops.ppt_select import BACKENDS, why_not


def impls(x):
    return ["reference", *(b for b in BACKENDS if why_not(b, x) is None)]


@pytest.mark.parametrize("tokens,keep", [(256, 180), (17, 0.7), (1, 1), (63, 1.0), (300, 0)])
def test_against_sorting(device, tokens, keep):
    score = (torch.rand(3, tokens, device=device) * 20).round() / 20  # many ties
    count = math.ceil(tokens * keep) if isinstance(keep, float) else keep
    for impl in impls(score):
        got = ppt_select(score, keep, impl=impl)
        for row, idx in zip(score.tolist(), got.tolist()):
            assert idx == sorted(range(tokens), key=lambda i: (-row[i], i))[:count]
        by_position = ppt_select(score, keep, sort_by_position=True, impl=impl)
        assert torch.equal(by_position, got.sort(1).values)


def test_nan_is_last(device):
    score = torch.tensor([[0.5, float("nan"), -1.0]], device=device)
    for impl in impls(score):
        assert ppt_select(score, 2, impl=impl).tolist() == [[0, 2]]


def test_gather_tokens():
    x = torch.randn(2, 10, 4, dtype=torch.float64, requires_grad=True)
    idx = ppt_select(torch.rand(2, 10), 6)
    assert torch.equal(gather_tokens(x, idx)[1, 2], x[1, idx[1, 2]])
    assert torch.autograd.gradcheck(lambda t: gather_tokens(t, idx), x)


def test_errors():
    with pytest.raises(ValueError, match=r"ppt_select: keep must select 0..5 tokens"):
        ppt_select(torch.rand(1, 5), 6)
    with pytest.raises(ValueError, match=r"attn_sum must be \[B, P\]"):
        ppt_select(torch.rand(5), 2)
