"""The table that `auto` asks on CUDA: rules, the user's own file, what the benchmark writes. Rules alone: no GPU."""

import json
import sys

import pytest
import torch

from tore_fast.layers.mesh import MeshPattern
from tore_fast.ops import _choices, mesh_topology
from tore_fast.ops.mesh_attention import BACKENDS, _order, mesh_attention, why_not

CALL = {"arch": "sm_90", "bits": 16, "bias": False, "grad": False, "dim": 64, "keys": 445, "queries": 445, "items": 512}


def test_the_shipped_table():
    rules = _choices.read(_choices.SHIPPED)
    assert {r.op for r in rules} == {"pruned_attention", "mesh_attention"}
    assert all(r.take in (*BACKENDS, "triton") and r.why for r in rules)
    assert _choices.preferred("pruned_attention", CALL).take == "sdpa"
    assert _choices.preferred("pruned_attention", CALL | {"keys": 49}).take == "triton"
    assert _choices.preferred("pruned_attention", CALL | {"bias": True}).take == "triton"
    assert _choices.preferred("mesh_attention", CALL).take == "cuda"
    assert _choices.preferred("linear", CALL) is None


def row(cuda_ms, sdpa_ms, direction="fwd", **size):
    size = {"bias": False, "dim": 64, "keys": 445, "queries": 445, "items": 512} | size
    ways = (("tore_fast", None, 0.01), ("tore_fast cuda", "cuda", cuda_ms), ("tore_fast sdpa", "sdpa", sdpa_ms))
    return {
        "op": "mesh_attention",
        "case": "body",
        "direction": direction,
        "device": "cuda",
        "dtype": "bfloat16",
        "params": size,
        "contenders": [{"name": n, "params": {"way": w}, "median_ms": t} for n, w, t in ways],
    }


def test_what_was_measured_is_taken(tmp_path, monkeypatch):
    rules = _choices.measured([row(0.05, 0.1), row(0.3, 0.1, "fwd+bwd"), row(0.2, 0.1, keys=216)], "sm_90")
    file = tmp_path / "choices.json"
    file.write_text(json.dumps({"about": "", "rules": rules}))
    table = _choices.read(file)
    assert [r.take for r in table] == ["cuda", "sdpa", "sdpa"] and {r.source for r in table} == {"measured"}
    for change, want in (
        ({}, "cuda"),
        ({"grad": True}, "sdpa"),
        ({"keys": 216}, "sdpa"),
        ({"items": 300}, "cuda"),
        ({"items": 256}, None),  # the class of the next smaller size
        ({"arch": "sm_80"}, None),
        ({"bits": 32}, None),
    ):
        found = _choices.preferred("mesh_attention", CALL | change, table)
        assert (found and found.take) == want, change
    monkeypatch.setenv("TORE_FAST_CHOICES", str(file))
    assert _choices._load()[:3] == table and _choices._load()[3:] == _choices.read(_choices.SHIPPED)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"rules": [{"op": "x"}]}', '{"rules": [{"op": "x", "take": "y", "source": "z", "why": ""}]}', "\0"],
)
def test_a_file_that_is_no_table(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="bad.json"):
        _choices.read(tmp_path / "bad.json")


def test_order_of_mesh_attention(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = sys.modules["tore_fast.ops.mesh_attention"]
    with FakeTensorMode():
        q = torch.empty(64, 8, 445, 64, dtype=torch.bfloat16, device="cuda")
        assert _order(q, q, q) == ("cuda", "sdpa", "cpu")
        rule = _choices.Rule("mesh_attention", "sdpa", "measured", "", bits=16)
        monkeypatch.setattr(module, "preferred", lambda op, call: rule)
        assert _order(q, q, q) == ("sdpa", "cuda", "cpu")
    assert _order(torch.empty(1, 1, 4, 8), *[torch.empty(1, 1, 4, 8)] * 2) == BACKENDS


def test_sdpa_with_the_mask_of_the_topology(monkeypatch):
    """The numbers on the CPU: there the way is refused, so the refusal is lifted for this test."""
    from tore_fast.ops import _dispatch

    adjacency = torch.rand(37, 37, generator=torch.Generator().manual_seed(0)) < 0.1
    topology = mesh_topology(adjacency | adjacency.T, 4)
    assert topology.bias.shape == (41, 48) and topology.bias.dtype == torch.bfloat16
    q, k, v = torch.randn(3, 2, 4, 41, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    q.requires_grad_()
    assert "takes cuda tensors" in why_not("sdpa", q) or "no GPU" in why_not("sdpa", q)
    want = mesh_attention(q, k, v, topology, impl="reference")
    monkeypatch.setitem(_dispatch.DEVICE_TYPES, "sdpa", "cpu")
    monkeypatch.setattr(sys.modules["tore_fast.ops.mesh_attention"], "backend_reason", lambda backend: None)
    got = mesh_attention(q, k, v, topology, impl="sdpa")
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(*(torch.autograd.grad(t.sin().sum(), q)[0] for t in (got, want)), atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="another dropout"):
        mesh_attention(q, k, v, topology, impl="sdpa", dropout_p=0.1)
    with pytest.raises(RuntimeError, match="no dense mask"):
        mesh_attention(q, k, v, topology._replace(bias=None), impl="sdpa")


def test_a_models_pattern_keeps_everything():
    """The tiles as well: without them CUDA would take the kernel without matrix units."""
    topology = mesh_topology(torch.eye(40).roll(1, 0) + torch.eye(40).roll(-1, 0), 3)
    held = MeshPattern(topology).half()()
    assert topology.tiles is not None and topology.bias is not None
    for name, t in topology.tensors().items():
        assert torch.equal(getattr(held, name), t), name
    assert held.joints == 3
