"""16-bit mesh models keep coordinates and cameras in float32: bf16 features cost what they cost, the heads add
nothing."""

from __future__ import annotations

import pytest
import torch
from models.mesh_tiny import BUILDERS, tiny_input
from torch import nn

from tore_fast.layers import bert_block
from tore_fast.models.mesh import fastmetro, graphormer, metro, metro_tore, tore

MILLIMETRE = 1e-3


def exact_metres(head, tokens, residual=None):
    """The head of layers/metres.py in float64 from the same 16-bit tokens and weights."""
    assert isinstance(head, nn.Linear)
    with torch.autocast("cpu", enabled=False):
        bias = None if head.bias is None else head.bias.double()
        out = nn.functional.linear(tokens.double(), head.weight.double(), bias)
        return (out if residual is None else out + residual.double()).float()


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_heads_add_no_rounding(name, way, monkeypatch):
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    x = tiny_input(name)
    if way == "bfloat16":
        model = model.bfloat16()
        x = tuple(t.bfloat16() for t in x) if isinstance(x, tuple) else x.bfloat16()

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
            return model(x)

    got = run()
    for module in (fastmetro, graphormer, metro, metro_tore, tore, bert_block):
        monkeypatch.setattr(module, "metres", exact_metres)
    want = run()
    for field in ("camera", "joints", "vertices_coarse", "vertices_intermediate", "vertices"):
        a, b = getattr(got, field), getattr(want, field)
        if a is None:
            continue
        assert a.dtype == torch.float32, field
        assert not torch.equal(a, a.bfloat16().float()), f"{field} lies on the 16-bit grid"
        error = (a - b).norm(dim=-1).mean() if a.dim() == 3 else (a - b).abs().mean()
        assert error < 0.05 * MILLIMETRE, (field, float(error) / MILLIMETRE)
