"""Triton kernels without a GPU: compiled for sm_90 in this process, run by Triton's interpreter in another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_LIMIT = 227 * 1024  # bytes one sm_90 block may use
POINTERS = {"BIAS": "*fp32", "DELTA": "*fp32", "LSE": "*fp32", "DBIAS": "*fp32", "KEY_LEN": "*i32", "QUERY_LEN": "*i32",
            "CU_Q": "*i32", "CU_K": "*i32"}
OPTIONAL = {"BIAS": "HAS_BIAS", "DBIAS": "HAS_BIAS", "KEY_LEN": "HAS_KEY_LEN", "QUERY_LEN": "HAS_QUERY_LEN", "CU_Q": "PACKED",
            "CU_K": "PACKED"}


def compile_for_sm90(fn, constants: dict, dtype: str, warps: int, stages: int, folder: Path) -> tuple[int, int]:
    """Compiles one variant offline; returns (shared bytes, spilled bytes)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs = {}, {}
    for name in fn.arg_names:
        if name in constants:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif name in OPTIONAL and not constants[OPTIONAL[name]]:
            signature[name], constexprs[name] = "constexpr", None
        elif name.isupper():
            signature[name] = POINTERS.get(name, f"*{dtype}")
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    attrs = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*"}
    kernel = triton.compile(
        ASTSource(fn=fn, signature=signature, constexprs=constexprs, attrs=attrs),
        target=GPUTarget("cuda", 90, 32),
        options=dict(num_warps=warps, num_stages=stages),
    )
    assert kernel.asm["cubin"]
    return kernel.metadata.shared, spilled(kernel.asm["ptx"], folder)


def spilled(ptx: str, folder: Path) -> int:
    """Bytes of spill stores of the program, by the ptxas that Triton itself takes for sm_90 (3.6 and 3.9: another
    one)."""
    from triton.backends.nvidia.compiler import get_ptxas

    source = folder / "kernel.ptx"
    source.write_text(ptx)
    run = subprocess.run([get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "-o", folder / "kernel.cubin", source], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"(\d+) bytes spill stores", run.stderr)
    assert found, run.stderr
    return max(map(int, found))


@pytest.mark.parametrize("kernel", ["fwd", "dkv", "dq"])
@pytest.mark.parametrize("dtype,dim,queries,keys,options", [
    ("bf16", 64, 784, 49, True), ("fp16", 24, 273, 273, False), ("fp32", 80, 192, 90, True), ("bf16", 256, 64, 300, False),
])
def test_pruned_attention_compiles(kernel, dtype, dim, queries, keys, options, tmp_path, monkeypatch):
    assert os.environ.get("TRITON_INTERPRET") != "1"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tore_fast.triton_kernels import _configs
    from tore_fast.triton_kernels import pruned_attention as m

    block_d = _configs.next_power_of_2(dim)
    c = (_configs.pruned_attention_fwd if kernel == "fwd" else _configs.pruned_attention_bwd)(queries, keys, block_d, dtype == "fp32")
    constants = dict(H=8, D=dim, BLOCK_D=block_d, BLOCK_M=c.block_m, BLOCK_N=c.block_n, HAS_BIAS=options, HAS_KEY_LEN=options,
                     HAS_QUERY_LEN=options, PACKED=False, PRECISION="tf32x3" if dtype == "fp32" else "ieee", UNIT=8)
    blocks = -(-keys // c.block_n)
    if kernel == "dkv":
        constants |= dict(BLOCKS_PER_SPLIT=-(-queries // c.block_m), SPLITS=1, WRITE_DQ=blocks == 1)
    else:
        constants |= dict(NUM_K_BLOCKS=blocks)
    fn = getattr(m, f"pruned_attention_{kernel}_kernel")
    shared, spills = compile_for_sm90(fn, constants, dtype, c.warps, c.stages, tmp_path)
    print(f"{kernel} {dtype} D{dim} {c}: shared {shared}, spilled {spills}")
    assert shared <= SHARED_LIMIT
    assert spills == 0


def test_packed_variant_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tore_fast.triton_kernels.pruned_attention import pruned_attention_fwd_kernel as fn

    constants = dict(H=8, D=64, BLOCK_D=64, BLOCK_M=64, BLOCK_N=64, NUM_K_BLOCKS=2, HAS_BIAS=False, HAS_KEY_LEN=False,
                     HAS_QUERY_LEN=False, PACKED=True, PRECISION="ieee", UNIT=8)
    shared, _ = compile_for_sm90(fn, constants, "bf16", 4, 2, tmp_path)
    assert shared <= SHARED_LIMIT


def test_ppt_select_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tore_fast.triton_kernels.ppt_select import ppt_select_fwd_kernel as fn

    assert fn.arg_names[:2] == ["SCORE", "OUT"]
    POINTERS["OUT"] = "*i32"
    try:
        shared, spills = compile_for_sm90(fn, dict(BLOCK=64, NUM_BLOCKS=4), "fp32", 4, 1, tmp_path)
    finally:
        del POINTERS["OUT"]
    assert shared <= SHARED_LIMIT and spills == 0


INTERPRETED = """
import torch
from tore_fast.ops.reference.ppt_select import ppt_select_reference
from tore_fast.ops.reference.pruned_attention import pruned_attention_reference
from tore_fast.triton_kernels import ppt_select, pruned_attention

torch.manual_seed(0)
for dtype, limit in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
    # one key tile | several tiles and a padded head dimension | split query loop | nothing optional
    for nq, nk, d, optional in ((20, 17, 16, True), (17, 70, 24, True), (140, 20, 16, True), (17, 33, 80, False)):
        q, k, v, g = (torch.randn(2, n, 2, d, dtype=dtype).transpose(1, 2) for n in (nq, nk, nk, nq))
        bias = key_len = query_len = None
        if optional:
            bias = torch.randn(2, nk)
            bias[0, 3] = float("-inf")
            key_len, query_len = (torch.tensor(x, dtype=torch.int32) for x in ([nk - 5, 0], [nq, nq // 3]))
        pruned_attention.FUSED_QUERIES = 100
        args = (bias, key_len, query_len, None, None, nq, nk, d**-0.5)
        out, lse = pruned_attention.fwd(q, k, v, *args)
        exact = [t.double().requires_grad_() for t in (q, k, v)] + ([bias.double().requires_grad_()] if optional else [])
        want, want_lse, _ = pruned_attention_reference(*exact[:3], exact[3] if optional else None, key_len, query_len, d**-0.5)
        want_grads = torch.autograd.grad(want, exact, g.double())
        delta = (g.double() * want.detach()).sum(-1).float()
        dq, dk, dv, dbias = pruned_attention.bwd(g, q, k, v, bias, delta, want_lse.detach().float(), *args[1:-3], nq, nk, d**-0.5)
        got = [out.transpose(1, 2), *(t.transpose(1, 2) for t in (dq, dk, dv)), *([dbias] if optional else [])]
        for name, a, b in zip("out dq dk dv dbias".split(), got, (want.detach(), *want_grads)):
            error = float((a.double() - b).norm() / b.norm())
            assert error < limit * (1 if name == "out" else 4), (dtype, nq, nk, d, name, error)
        assert torch.equal(lse.isinf(), want_lse.isinf())
        torch.testing.assert_close(lse.nan_to_num(0, 0, 0), want_lse.detach().float().nan_to_num(0, 0, 0), rtol=1e-4, atol=1e-3)
# packed: an empty sequence, a sequence without keys, rows that belong to no sequence
cu_q, cu_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 3, 10, 17], [0, 5, 9, 9, 20]))
q, k, v = (torch.randn(1, 2, n, 24) for n in (18, 20, 20))
out, _ = pruned_attention.fwd(q, k, v, None, None, None, cu_q, cu_k, 7, 11, 0.2)
for b in range(4):
    i, j = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
    want, _, _ = pruned_attention_reference(q[:, :, i], k[:, :, j], v[:, :, j], None, None, None, 0.2)
    torch.testing.assert_close(out[:, i].transpose(1, 2), want)
assert (out[:, 17:] == 0).all()
score = (torch.rand(3, 150) * 20).round() / 20  # many ties
score[0, 5] = float("nan")
for by_position in (False, True):
    assert torch.equal(ppt_select.select(score, 70, by_position), ppt_select_reference(score, 70, by_position))
"""


def test_interpreter_numerics(tmp_path):
    script = tmp_path / "interp.py"
    script.write_text(INTERPRETED)
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
