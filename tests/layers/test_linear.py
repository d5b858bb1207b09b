"""Linear and Prepared: the layer is the function its name says, and nothing that a prepared module keeps gets stale."""

from __future__ import annotations

import copy
import importlib
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tore_fast.benchmarks.baselines import torch_products
from tore_fast.layers.linear import Linear
from tore_fast.layers.prepared import Prepared, prepare, unprepare
from tore_fast.models import create_model

ROWS, DIM, OUT = 6 * 21, 192, 288  # 7.0 M multiply-adds
op = importlib.import_module("tore_fast.ops.linear")  # the function hides the module


def make(bias: bool = True, drop: float = 0.0) -> Linear:
    torch.manual_seed(0)
    return Linear(DIM, OUT, bias, drop).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(6, 21, DIM, generator=g), torch.randn(6, 21, OUT, generator=g)


@pytest.fixture
def calls(monkeypatch):
    """Shapes that went to oneDNN."""
    seen, run = [], op._onednn
    monkeypatch.setattr(op, "_onednn", lambda x, *rest: seen.append(tuple(x.shape)) or run(x, *rest))
    return seen


needs_onednn = pytest.mark.skipif(op.backend_reason("onednn") is not None, reason="torch without oneDNN")


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert (got.double() - want).norm() < 2e-6 * want.norm()


@needs_onednn
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("what", ["plain", "gelu", "residual", "split", "norm", "strided"])
def test_layer_is_linear(what, bias, prepared, calls):
    layer, (x, residual) = make(bias), inputs()
    if what == "strided":
        x, residual = x.transpose(0, 1), residual.transpose(0, 1)
    if prepared:
        layer.prepare()
    norm = nn.LayerNorm(DIM)
    norm.weight.data.uniform_(0.5, 1.5)
    start = norm.double()(x.double()) if what == "norm" else x.double()
    want = F.linear(start, layer.weight.double(), None if layer.bias is None else layer.bias.double())
    with torch.inference_mode():
        if what == "gelu":
            got, want = layer(x, act="gelu"), F.gelu(want)
        elif what == "split":
            got = torch.cat(layer(x, split=2), dim=-1)
        elif what == "norm":
            got = layer(x, norm=norm.float())
        elif what == "plain":
            got = layer(x)
        else:
            before = residual.clone()
            got, want = layer(x, residual), want + residual.double()
            assert torch.equal(residual, before)
        close(got, want)
    assert len(calls) == (0 if what == "split" else 1)  # halves are too small for it


@needs_onednn
def test_where_onednn_is_left_alone(calls):
    layer, (x, _) = make(), inputs()
    with torch.no_grad():
        assert layer.to(torch.float64)(x.double()).dtype == torch.float64
        assert layer.to("meta")(x.to("meta")).device.type == "meta"
        exported = torch.export.export(make(), (x,))
        assert not [n for n in exported.graph.nodes if "mkldnn" in str(n.target)]
    assert not calls


def test_training_drops_before_the_residual():
    layer, (x, residual) = make(drop=0.5).train(), inputs()
    added = layer(x, residual) - residual
    zero = added.abs() < 1e-5
    assert 0.45 < zero.float().mean() < 0.55
    torch.testing.assert_close(added[~zero], 2 * F.linear(x, layer.weight, layer.bias)[~zero], rtol=1e-4, atol=1e-5)
    assert layer(x).requires_grad


def test_a_prepared_module_has_gradients():
    """Asked for a gradient of a weight, it computes with the weight; the bits of before come back in the end."""
    layer, (x, _) = make(), inputs()
    want = layer(x)
    layer.prepare()
    got = layer(x)
    assert torch.equal(got, want)
    got.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        plain = torch.equal(layer.unprepare()(x), make()(x))
    assert plain and not layer.prepared


@needs_onednn
def test_changed_weights_are_noticed():
    layer, (x, _) = make(), inputs()
    product = lambda: F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.no_grad():
        layer.prepare()
        close(layer(x), product())
        assert layer.packed.names()
        layer.weight.mul_(2)
        close(layer(x), product())
        layer.weight.data = torch.randn(OUT, DIM)
        close(layer(x), product())
        layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
        assert not layer.prepared
        close(layer(x), product())
        layer.prepare()
        layer(x)
        twin = copy.deepcopy(layer)
        assert not twin.prepared and torch.equal(twin.weight, layer.weight)
        torch.save(layer, buffer := io.BytesIO())
        buffer.seek(0)
        assert not torch.load(buffer, weights_only=False).prepared
        assert layer.prepared and not layer.train().prepared
        with pytest.raises(RuntimeError, match="call eval"):
            layer.prepare()
        layer.eval().prepare()
        assert not layer.double().prepared


class Doubled(Prepared):
    """Keeps twice the weight of a part that is no Prepared itself."""

    def __init__(self):
        super().__init__()
        self.part = nn.Linear(3, 3)

    def keep_terms(self):
        self.keep("twice", (self.part,), lambda: self.part.weight * 2)

    def forward(self, x):
        kept = self.recall("twice")
        return F.linear(x, self.part.weight * 2 if kept is None else kept), kept is not None


def test_kept_terms_follow_the_weights_of_any_part():
    model, x = nn.Sequential(Doubled()).eval(), torch.randn(2, 3)
    part = model[0].part
    check = lambda used: (model(x)[1] is used) and torch.equal(model(x)[0], F.linear(x, 2 * part.weight))
    with torch.no_grad():
        assert check(False)
        prepare(model)
        assert check(True)
        part.weight.add_(1)
        assert check(True)
        part.load_state_dict({k: v + 1 for k, v in part.state_dict().items()})
        assert check(True)
        part.load_state_dict({k: v + 1 for k, v in part.state_dict().items()}, assign=True)  # other Parameter objects
        assert check(True)
        part.weight = nn.Parameter(torch.randn(3, 3))
        assert check(True)
    assert check(False)  # the weight wants its gradient
    model.requires_grad_(False)
    assert check(True)
    assert unprepare(model) is model and check(False)


def test_a_prepared_model_gives_the_same_poses():
    torch.manual_seed(0)
    model = create_model("hot_motionbert_27", channels=64, heads=4, mlp_hidden=96, depth=2).eval()
    x = torch.randn(3, 27, 17, 3)
    with torch.inference_mode():
        want = model(x)
        got = model.prepare()(x)
        assert torch.equal(got.index, want.index)
        torch.testing.assert_close(got.pose, want.pose, rtol=1e-5, atol=1e-6)
        assert torch.equal(model(x).pose, got.pose)
        assert all(m.prepared for m in model.modules() if isinstance(m, Prepared))
        assert torch.equal(model.unprepare()(x).pose, want.pose)


@needs_onednn
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        (
            "fastmetro_tore_s_r50",
            dict(backbone=None, feature_dim=64, dim_1=64, dim_2=32, dim_3=32, heads=4),
            (64, 7, 7),
        ),
        (
            "metro_r50",
            dict(backbone=None, feature_dim=64, hidden=(64, 32, 32), widths=(32, 32), feedforward=(64, 64, 64)),
            (64, 7, 7),
        ),
        ("hmr2_vits", dict(embed_dim=48, depth=3, num_heads=3, decoder_depth=1, keep_tokens=90), (3, 256, 256)),
        (
            "tcformer_light",
            dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1)),
            (3, 96, 96),
        ),
    ],
)
def test_models_take_it_and_answer_the_same(name, sizes, shape, calls, monkeypatch):
    """Every product of a small model through oneDNN, packed, against `F.linear`."""
    monkeypatch.setattr(op, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(op, "MIN_ROWS", 0)
    torch.manual_seed(0)
    model = create_model(name, **sizes).eval()
    x = torch.randn(2, *shape)
    last = lambda out: next(t for t in reversed(out) if t is not None) if isinstance(out, tuple) else out
    with torch.inference_mode():
        with torch_products():
            want = last(model(x))
        assert not calls
        got = last(prepare(model)(x))
        assert len(calls) > 8
        assert torch.equal(last(model(x)), got)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
