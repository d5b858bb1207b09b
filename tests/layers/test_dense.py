"""Dense and Frozen: the products on the CPU (oneDNN's, Strassen's) are the same function, are taken where they are meant to,
and no weight gets stale."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tore_fast.layers import dense
from tore_fast.layers.dense import Dense
from tore_fast.layers.frozen import Frozen, freeze
from tore_fast.models import create_model

ROWS, DIM, OUT = 6 * 21, 192, 288  # 7.0 M multiply-adds


def make(bias: bool = True, drop: float = 0.0) -> Dense:
    torch.manual_seed(0)
    return Dense(DIM, OUT, bias, drop).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(6, 21, DIM, generator=g), torch.randn(6, 21, OUT, generator=g)


@pytest.fixture
def calls(monkeypatch):
    """Shapes that went to oneDNN."""
    seen, run = [], dense._onednn
    monkeypatch.setattr(dense, "_onednn", lambda x, *rest: seen.append(tuple(x.shape)) or run(x, *rest))
    return seen


needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="torch without oneDNN",
)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert (got.double() - want).norm() < 2e-6 * want.norm()


@needs_onednn
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("what", ["plain", "gelu", "residual", "part", "strided"])
def test_fused_product_is_linear(what, bias, frozen, calls):
    layer, (x, residual) = make(bias), inputs()
    if what == "strided":
        x, residual = x.transpose(0, 1), residual.transpose(0, 1)
    if frozen:
        layer.freeze()
    want = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    with torch.inference_mode():
        if what == "gelu":
            got, want = layer(x, act="gelu"), F.gelu(want)
        elif what == "part":
            got = torch.cat(layer.parts(x, 2), dim=-1)
        elif what == "plain":
            got = layer(x)
        else:
            before = residual.clone()
            got, want = layer(x, residual), want + residual.double()
            assert torch.equal(residual, before)
        close(got, want)
        again = layer(
            x, residual if what in ("residual", "strided") else None, act="gelu" if what == "gelu" else "none"
        )
        assert torch.equal(got, again) or what == "part"
    assert len(calls) == (1 if what == "part" else 2)  # halves are too small for it


@needs_onednn
def test_where_onednn_is_left_alone(calls):
    layer, (x, residual) = make(), inputs()
    want = F.linear(x, layer.weight, layer.bias)
    close(layer(x), want.double())  # gradients
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            layer(x, residual)
        assert counter.get_total_flops() == 2 * ROWS * DIM * OUT
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer(x[:1])  # too few rows
        assert layer.to(torch.float64)(x.double()).dtype == torch.float64
        assert layer.to("meta")(x.to("meta")).device.type == "meta"
        exported = torch.export.export(make(), (x,))
        assert not [n for n in exported.graph.nodes if "mkldnn" in str(n.target)]
    assert not calls
    with torch.no_grad():
        make()(x)
    assert calls == [(6, 21, DIM)]


def test_training_drops_before_the_residual():
    layer, (x, residual) = make(drop=0.5).train(), inputs()
    added = layer(x, residual) - residual
    zero = added.abs() < 1e-5
    assert 0.45 < zero.float().mean() < 0.55
    torch.testing.assert_close(added[~zero], 2 * F.linear(x, layer.weight, layer.bias)[~zero], rtol=1e-4, atol=1e-5)
    assert layer(x).requires_grad


@needs_onednn
def test_frozen_products_are_strassens(monkeypatch, calls):
    """Which level for which sizes, one packed weight per level and slice, the same function, forgotten with the weight."""
    levels = {
        (192, 256, 256): 1,
        (191, 256, 256): None,
        (400, 384, 512): 2,
        (400, 368, 512): None,
        (400, 192, 512): None,
        (300, 1280, 5120): 1,
    }
    assert {s: dense.strassen_level(*s) for s in levels} == levels
    monkeypatch.setattr(dense, "STRASSEN", ((1, 100, 32),))
    monkeypatch.setattr(dense, "pays", lambda: False)  # a processor without AVX2
    layer, (x, _) = make(), inputs()
    layer.freeze()
    with torch.inference_mode():
        layer(x)
    assert len(calls) == 1 and list(layer._kept) == [("packed", None)]
    calls.clear()
    monkeypatch.setattr(dense, "pays", lambda: True)
    layer, (x, residual) = make(), inputs()
    layer.freeze()
    product = lambda part=slice(None): F.linear(x.double(), layer.weight.double()[part], layer.bias.double()[part])
    with torch.inference_mode():
        close(layer(x), product())
        close(layer(x, residual), product() + residual.double())
        close(layer(x, act="gelu"), F.gelu(product()))
        close(torch.cat(layer.parts(x, 3), -1), product())
    assert not calls and [key for key in layer._kept] == [("strassen", 1, None)]
    with torch.no_grad():
        layer.weight.mul_(-2)
        close(layer(x), product())
        with dense.aten_products():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.thaw()
        layer(x)
    assert calls == [(6, 21, DIM)]


@needs_onednn
def test_changed_weights_are_noticed():
    layer, (x, _) = make(), inputs()
    product = lambda: F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.no_grad():
        layer.freeze()
        close(layer(x), product())
        layer.weight.mul_(2)
        close(layer(x), product())
        layer.weight.data = torch.randn(OUT, DIM)
        close(layer(x), product())
        layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
        assert not layer.frozen
        close(layer(x), product())
        layer.freeze()
        layer(x)
        twin = copy.deepcopy(layer)
        assert not twin.frozen and torch.equal(twin.weight, layer.weight)
        torch.save(layer, buffer := io.BytesIO())
        buffer.seek(0)
        assert not torch.load(buffer, weights_only=False).frozen
        assert layer.frozen and not layer.train().frozen
        layer.eval().freeze()
        assert not layer.double().frozen


def test_a_frozen_model_gives_the_same_poses():
    torch.manual_seed(0)
    model = create_model("hot_motionbert_27", channels=64, heads=4, mlp_hidden=96, depth=2).eval()
    x = torch.randn(3, 27, 17, 3)
    with torch.inference_mode():
        want = model(x)
        freeze(model)
        got = model(x)
        assert torch.equal(got.index, want.index)
        torch.testing.assert_close(got.pose, want.pose, rtol=1e-5, atol=1e-6)
        assert torch.equal(model(x).pose, got.pose)
    assert all(m.frozen for m in model.modules() if isinstance(m, Frozen))


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
    """Every product of a small model through oneDNN, packed where the model can be fused, against `aten_products`."""
    monkeypatch.setattr(dense, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(dense, "MIN_ROWS", 0)
    torch.manual_seed(0)
    model = create_model(name, **sizes).eval()
    x = torch.randn(2, *shape)
    last = lambda out: next(t for t in reversed(out) if t is not None) if isinstance(out, tuple) else out
    with torch.inference_mode():
        with dense.aten_products():
            want = last(model(x))
        assert not calls
        for shortcut in ("fuse", "fold"):
            if hasattr(model, shortcut):
                getattr(model, shortcut)()
        got = last(model(x))
    assert len(calls) > 8
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
