"""linear: which backend takes what; Strassen: every level and vector width against float64, how errors behave, rows
that must not spoil others."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tore_fast.ops import BackendUnavailable, Norm, PackedWeight, linear
from tore_fast.ops._strassen import deepest_level, strassen_multiply, strassen_pack

pytestmark = pytest.mark.cpu_kernels
ACTS = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu}
module = importlib.import_module("tore_fast.ops.linear")  # the function hides it
needs_kernel = pytest.mark.skipif(
    module.why_not("strassen", torch.zeros(1)) is not None,
    reason=f"no kernel: {module.why_not('strassen', torch.zeros(1))}",
)

needs_onednn = pytest.mark.skipif(module.backend_reason("onednn") is not None, reason="torch without oneDNN")


def make(rows: int, k: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((rows, k), (n, k), (n,), (rows, n))
    x, w, b, residual = (torch.randn(*s, generator=g) for s in shapes)
    return x, w / k**0.5, b, residual


def exact(x, w, b=None, residual=None, act=None) -> torch.Tensor:
    out = ACTS[act](F.linear(x.double(), w.double(), None if b is None else b.double()))
    return out if residual is None else out + residual.double()


@needs_kernel
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 2, 5, 24, 25, 100, 193, 401])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (128, 192), (320, 448)])
def test_levels_and_ragged_rows(level, rows, k, n):
    """Sizes whose blocks are no multiples of a panel, rows that are no multiples of a tile, a block or a chunk."""
    x, w, b, residual = make(rows, k, n)
    packed = strassen_pack(w, level)
    for act in ACTS:
        for r in (None, residual):
            got = strassen_multiply(x, packed, b, r, act)
            torch.testing.assert_close(got.double(), exact(x, w, b, r, act), rtol=0, atol=1.2e-5)
    assert torch.equal(strassen_multiply(x, packed), strassen_multiply(x, packed))


@needs_kernel
def test_errors_stay_near_those_of_a_plain_product():
    """The figure the docstring gives, at a size that models have."""
    x, w, _, _ = make(1000, 512, 512)
    want = exact(x, w)
    error = [
        float((strassen_multiply(x, strassen_pack(w, level)).double() - want).norm() / want.norm())
        for level in range(3)
    ]
    assert error[0] < 6e-7 and error[1] < 2 * error[0] and error[2] < 3 * error[0], error


@needs_kernel
def test_gelu_is_the_exact_one():
    x = torch.zeros(1000, 64)
    x[:, 0] = torch.linspace(-12, 12, 1000)
    got = strassen_multiply(x, strassen_pack(torch.eye(64), 0), act="gelu")[:, 0]
    want = F.gelu(x[:, 0].double())
    assert ((got.double() - want).abs() / x[:, 0].abs().clamp(min=1)).max() < 3e-7
    far = torch.full((4, 64), -1e4)
    assert torch.equal(strassen_multiply(far, strassen_pack(torch.eye(64)), act="gelu"), torch.zeros(4, 64))


@needs_kernel
def test_a_small_row_beside_a_huge_one_keeps_its_digits():
    x, w, _, _ = make(96, 128, 128)
    x[::3] *= 1e6
    x[1::3] *= 1e-9
    w[::2] *= 1e5
    want = exact(x, w)
    error = (strassen_multiply(x, strassen_pack(w)).double() - want).abs()
    assert (error <= 1e-5 * x.abs().amax(1, keepdim=True) * w.abs().amax(1)).all()


@needs_kernel
@pytest.mark.parametrize("scale", [3e38, 1e-39, 0.0])
def test_ends_of_the_range(scale):
    """Sums of blocks would overflow at the upper end; the lower one is subnormal."""
    x, w, _, _ = make(50, 64, 64)
    x = x / x.abs().max() * scale
    w = w / w.abs().sum(1, keepdim=True)
    got = strassen_multiply(x, strassen_pack(w))
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), exact(x, w), rtol=0, atol=max(scale, 1e-38) * 1e-5)


@needs_kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("act", [None, "relu", "gelu"])
def test_rows_that_are_not_finite_spoil_no_other(bad, act):
    x, w, b, residual = make(210, 64, 128)
    packed = strassen_pack(w)
    clean = exact(x, w, b, residual, act)
    x[7, 3], x[100] = bad, bad
    got = strassen_multiply(x, packed, b, residual, act)
    want = linear(x, w, b, residual=residual, act=act, impl="reference")
    others = [r for r in range(210) if r not in (7, 100)]
    torch.testing.assert_close(got[others].double(), clean[others], rtol=0, atol=1.2e-5)
    if act == "gelu" and abs(bad) == float("inf"):  # torch's exact GELU of inf depends on who computes it
        assert not got[[7, 100]].isfinite().all()
    else:
        torch.testing.assert_close(got[[7, 100]], want[[7, 100]], equal_nan=True, rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("rows", [3, 200])
def test_normalised_rows_and_parts(split, rows):
    """LayerNorm in front, q, k and v as contiguous tensors; a row that is not finite stays alone here too."""
    x, w, b, _ = make(rows, 128, 192)
    x = x * torch.logspace(-1, 4, rows)[:, None] + 1
    want = F.linear(F.layer_norm(x.double(), (128,), eps=1e-6), w.double(), b.double())
    x[1, 5] = float("inf")
    got = strassen_multiply(x, strassen_pack(w, 1), b, split=split, norm_eps=1e-6)
    parts = (got,) if split == 1 else got
    assert len(parts) == split and all(p.is_contiguous() and p.shape == (rows, 192 // split) for p in parts)
    got = torch.cat(parts, dim=1)
    others = [r for r in range(rows) if r != 1]
    torch.testing.assert_close(got[others].double(), want[others], rtol=0, atol=3e-5)
    assert got[1].isnan().all()


@needs_kernel
def test_opcheck():
    x, w, b, residual = make(9, 64, 32)
    packed = strassen_pack(w, 1)
    args = (x.requires_grad_(), w.requires_grad_(), packed.packed, packed.column, b.requires_grad_())
    for act in range(3):
        torch.library.opcheck(torch.ops.tore_fast.strassen_linear, (*args, residual.requires_grad_(), 1, act, 1, -1.0))
    torch.library.opcheck(torch.ops.tore_fast.strassen_linear, (*args, None, 1, 2, 2, 1e-5))
    torch.library.opcheck(torch.ops.tore_fast.strassen_pack, (w.detach(), 1))


def test_what_strassen_cannot_multiply():
    sizes = [(64, 128), (96, 64), (48, 48), (50, 64)]
    assert [deepest_level(*s) for s in sizes] == [2, 1, 0, None]
    for w in (torch.randn(50, 64), torch.randn(64, 64, dtype=torch.float64), torch.randn(64, 64, device="meta")):
        x = torch.randn(3, 64).to(w)
        got = linear(x, w, packed=PackedWeight())
        assert got.is_meta or torch.equal(got, F.linear(x, w))
        with pytest.raises(BackendUnavailable, match="linear: impl='strassen' cannot run here"):
            linear(x, w, impl="strassen")
    x, w = torch.randn(3, 64), torch.randn(64, 64)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BackendUnavailable, match="autocast is on"):
        linear(x, w, impl="strassen")


@needs_onednn
def test_what_onednn_cannot_multiply():
    x, w, _, residual = make(9, 64, 32)
    with pytest.raises(BackendUnavailable, match="it adds a residual to the plain product only"):
        linear(x, w, residual=residual, act="relu", impl="onednn")
    with pytest.raises(BackendUnavailable, match="it has no gradient"):
        linear(x, w.requires_grad_(), impl="onednn")


@needs_kernel
@needs_onednn
@pytest.mark.parametrize("impl", ["reference", "onednn", "strassen"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_backend_is_the_same_function(impl, packed):
    x, w, b, residual = make(130, 128, 192)
    norm = Norm(torch.rand(128) + 0.5, torch.randn(128), 1e-6)
    normed = F.layer_norm(x.double(), (128,), norm.weight.double(), norm.bias.double(), norm.eps)
    store = PackedWeight() if packed else None
    for _ in range(2):
        run = functools.partial(linear, x, w, impl=impl, packed=store)
        torch.testing.assert_close(run().double(), exact(x, w), rtol=0, atol=1.2e-5)
        torch.testing.assert_close(run(bias=b, act="gelu").double(), exact(x, w, b, act="gelu"), rtol=0, atol=1.2e-5)
        torch.testing.assert_close(run(residual=residual).double(), exact(x, w, None, residual), rtol=0, atol=1.2e-5)
        row = residual[:1]  # broadcast
        torch.testing.assert_close(
            run(bias=b, residual=row).double(), exact(x, w, b, row.expand(130, -1)), rtol=0, atol=1.2e-5
        )
        torch.testing.assert_close(run(bias=b, norm=norm).double(), exact(normed, w, b), rtol=0, atol=4e-5)
        parts = run(bias=b, norm=norm, split=3)
        assert all(p.is_contiguous() and p.shape == (130, 64) for p in parts)
        torch.testing.assert_close(torch.cat(parts, 1).double(), exact(normed, w, b), rtol=0, atol=4e-5)
        with torch.no_grad():
            w *= 1.5  # a packed weight notices
            b += 0.25
            norm.weight.mul_(0.5)
        normed = F.layer_norm(x.double(), (128,), norm.weight.double(), norm.bias.double(), norm.eps)


@needs_onednn
def test_what_auto_takes(monkeypatch):
    """By size, level and packing; never where gradients are recorded or a program is traced or counted."""
    levels = {
        (192, 256, 256): 1,
        (191, 256, 256): None,
        (400, 384, 512): 2,
        (400, 368, 512): None,
        (400, 192, 512): None,
        (300, 1280, 5120): 1,
    }
    assert {s: module.strassen_level(*s) for s in levels} == levels
    seen = []
    for name in ("_strassen", "_onednn"):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda x, w, *rest, run=run, name=name: seen.append(name) or run(x, w, *rest))

    def taken(x, w, **more) -> str:
        seen.clear()
        linear(x, w, **more)
        return seen[0] if seen else "reference"

    x, w, b, residual = make(192, 256, 256)
    store = PackedWeight()
    assert taken(x, w, packed=store) == "reference"  # gradients may be recorded
    with torch.no_grad():
        assert taken(x, w) == "_onednn"
        assert taken(x[:99], w) == "reference"  # too few rows to lay the weight out for
        monkeypatch.setattr(module, "is_vectorised", lambda: False)
        assert taken(x, w, packed=store) == "_onednn" and store.names() == [("onednn", 0, 256, 256)]
        monkeypatch.setattr(module, "is_vectorised", lambda: True)
        if module.why_not("strassen", x) is None:
            assert taken(x, w, packed=store) == "_strassen" and ("strassen", 1, False, 0, 256, 256) in store
        assert taken(x[:, :240].contiguous(), w[:, :240].contiguous(), packed=PackedWeight()) == "_onednn"
        assert taken(x, w, residual=residual, act="relu") == "reference"
        assert taken(x.double(), w.double()) == "reference"
        with torch.autocast("cpu", torch.bfloat16):
            assert taken(x, w) == "reference" and linear(x, w).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            assert taken(x, w, packed=store) == "reference"
        assert counter.get_total_flops() == 2 * 192 * 256 * 256
        assert "the weight is not packed" in module.slower("strassen", x, w)
        assert "less than 100 rows" in module.slower("onednn", x[:99], w)
        assert "the product is too small" in module.slower("strassen", x[:150], w, packed=store)


def test_errors():
    x, w = torch.zeros(2, 128), torch.randn(64, 128)
    with pytest.raises(ValueError, match=r"linear: x must be \[..., K\] for a weight \[N, K\], got \[2, 64\] and"):
        linear(torch.zeros(2, 64), w)
    with pytest.raises(ValueError, match=r"linear: bias must be \[64\], got \[2\]"):
        linear(x, w, torch.zeros(2))
    with pytest.raises(ValueError, match=r"linear: residual must be \[2, 64\] or broadcast to it, got \[3, 64\]"):
        linear(x, w, residual=torch.zeros(3, 64))
    with pytest.raises(ValueError, match="split must divide N and goes without residual, got split 3 for N 64"):
        linear(x, w, split=3)
    with pytest.raises(ValueError, match="act must be one of"):
        linear(x, w, act="tanh")
    with pytest.raises(ValueError, match="impl must be one of"):
        linear(x, w, impl="cuda")
    with pytest.raises(ValueError, match=r"strassen_pack: level must be 0..2 .* got level 2 for \[96, 64\]"):
        strassen_pack(torch.zeros(96, 64), 2)
    with pytest.raises(ValueError, match=r"strassen_pack: weight must be \[N, K\] float32"):
        strassen_pack(torch.zeros(64))


@needs_kernel
@pytest.mark.parametrize("width", ["avx2", "none"])
def test_narrower_vectors(width):
    """The builds that this processor would not choose, through the same tests."""
    chosen = "levels_and_ragged_rows and (25 or 193) or huge_one or other or gelu or range"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        f"({chosen}) and not narrower",
    ]
    here = Path(__file__).parent  # where no checkout of the package, perhaps not built, shadows the installed one
    done = subprocess.run(
        command, env={**os.environ, "TORE_FAST_SIMD": width}, capture_output=True, text=True, cwd=here
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
