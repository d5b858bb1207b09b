"""Triton kernels of pruned_attention: forward, and backward with the gradient of the key bias.

One program is one tile of query rows (forward, dq) or of keys (dk, dv, dbias) of one (item, head). Padded items have
lengths, packed items have offsets; both become (first row, row count). Logits are kept in base 2. Launchers take and
return what the ops of tore_fast/_schema.py do; tore_fast/ops/pruned_attention.py registers them for CUDA tensors.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

from . import _configs

MAX_GRID = 2**31 - 1  # blocks of a launch along x; along y and z only 65,535
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(blocks, H: tl.constexpr):
    """(block, head, item) of this program: the grid has one dimension, which alone is long enough for large batches."""
    program = tl.program_id(0)
    row = program // blocks
    return program % blocks, tl.cast(row % H, tl.int64), tl.cast(row // H, tl.int64)


@triton.jit
def _item_rows(LEN, CU, item, size, HAS_LEN: tl.constexpr, PACKED: tl.constexpr):
    """(batch entry, first row, row count) of an item."""
    if PACKED:  # offsets outside the tensor must not become addresses
        first = tl.minimum(tl.maximum(tl.load(CU + item), 0), size)
        return 0, first, tl.minimum(tl.maximum(tl.load(CU + item + 1), first), size) - first
    if HAS_LEN:
        return item, 0, tl.minimum(tl.maximum(tl.load(LEN + item), 0), size)
    return item, 0, size


@triton.jit
def pruned_attention_fwd_kernel(
    Q,
    K,
    V,
    BIAS,
    KEY_LEN,
    QUERY_LEN,
    CU_Q,
    CU_K,
    OUT,
    LSE,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    num_queries,
    num_keys,
    blocks,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_K_BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_KEY_LEN: tl.constexpr,
    HAS_QUERY_LEN: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
):
    block, head, item = _place(blocks, H)
    q_entry, q_first, q_count = _item_rows(QUERY_LEN, CU_Q, item, num_queries, HAS_QUERY_LEN, PACKED)
    k_entry, k_first, k_count = _item_rows(KEY_LEN, CU_K, item, num_keys, HAS_KEY_LEN, PACKED)
    # padded rows beyond the length are written too (as zeros); packed rows beyond the item are another item's
    rows_stored = q_count if PACKED else num_queries
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    d_ok = d < D
    q_entry, k_entry = tl.cast(q_entry, tl.int64), tl.cast(k_entry, tl.int64)
    q_row = tl.cast(q_first, tl.int64) + m
    k_base = K + k_entry * stride_kb * UNIT + head * stride_kh * UNIT
    v_base = V + k_entry * stride_vb * UNIT + head * stride_vh * UNIT
    q = tl.load(  # [BLOCK_M, BLOCK_D]
        Q + q_entry * stride_qb * UNIT + head * stride_qh * UNIT + q_row[:, None] * stride_qn * UNIT + d[None, :],
        mask=(m < q_count)[:, None] & d_ok[None, :],
        other=0.0,
    )
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for step in range(0, NUM_K_BLOCKS):
        key = step * BLOCK_N + n
        k_ok = key < k_count
        k_row = tl.cast(k_first, tl.int64) + key
        k = tl.load(
            k_base + k_row[None, :] * stride_kn * UNIT + d[:, None], mask=k_ok[None, :] & d_ok[:, None], other=0.0
        )
        s = tl.dot(q, k, input_precision=PRECISION) * (scale * LOG2E)  # [BLOCK_M, BLOCK_N]
        if HAS_BIAS:
            s += (tl.load(BIAS + k_entry * num_keys + k_row, mask=k_ok, other=0.0) * LOG2E)[None, :]
        s = tl.where(k_ok[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row without keys so far must not give inf - inf
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(p, 1)
        v = tl.load(
            v_base + k_row[:, None] * stride_vn * UNIT + d[None, :], mask=k_ok[:, None] & d_ok[None, :], other=0.0
        )
        acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = new_top
    alive = (total > 0.0) & (m < q_count)
    out = tl.where(alive[:, None], acc / tl.where(alive, total, 1.0)[:, None], 0.0)
    lse = tl.where(alive, (top + tl.log2(tl.where(alive, total, 1.0))) * LN2, float("-inf"))
    o = OUT + ((q_entry * num_queries + q_row) * H + head)[:, None] * D + d[None, :]
    tl.store(o, out.to(OUT.dtype.element_ty), mask=(m < rows_stored)[:, None] & d_ok[None, :])
    tl.store(LSE + (q_entry * H + head) * num_queries + q_row, lse, mask=m < rows_stored)


@triton.jit
def _weights_and_gradient(q, k, v_t, g, lse, delta, bias, k_ok, alive, scale, PRECISION: tl.constexpr):
    """(p, ds) [BLOCK_M, BLOCK_N]: recomputed weights and the gradient of the logits (before the factor scale)."""
    s = tl.dot(q, k, input_precision=PRECISION) * (scale * LOG2E) + bias[None, :] * LOG2E
    # rows without keys have lse -inf: shift by 0 and drop them
    p = tl.exp2(s - tl.where(alive, lse, 0.0)[:, None] * LOG2E)
    p = tl.where(alive[:, None] & k_ok[None, :], p, 0.0)
    dp = tl.dot(g, v_t, input_precision=PRECISION)
    return p, tl.where(p > 0.0, p * (dp - delta[:, None]), 0.0)


@triton.jit
def pruned_attention_dkv_kernel(
    Q,
    K,
    V,
    G,
    BIAS,
    DELTA,
    LSE,
    KEY_LEN,
    QUERY_LEN,
    CU_Q,
    CU_K,
    DQ,
    DK,
    DV,
    DBIAS,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_gb,
    stride_gh,
    stride_gn,
    num_queries,
    num_keys,
    split_stride,
    blocks,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS_PER_SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    WRITE_DQ: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_KEY_LEN: tl.constexpr,
    HAS_QUERY_LEN: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
):
    block, head, item = _place(blocks, H)
    key_block, split = block // SPLITS, block % SPLITS
    q_entry, q_first, q_count = _item_rows(QUERY_LEN, CU_Q, item, num_queries, HAS_QUERY_LEN, PACKED)
    k_entry, k_first, k_count = _item_rows(KEY_LEN, CU_K, item, num_keys, HAS_KEY_LEN, PACKED)
    q_entry, k_entry = tl.cast(q_entry, tl.int64), tl.cast(k_entry, tl.int64)
    q_stored = q_count if PACKED else num_queries
    k_stored = k_count if PACKED else num_keys
    key = key_block * BLOCK_N + tl.arange(0, BLOCK_N)
    k_row = tl.cast(k_first, tl.int64) + key
    d = tl.arange(0, BLOCK_D)
    d_ok, k_ok = d < D, key < k_count
    kd_ok = k_ok[:, None] & d_ok[None, :]
    k = tl.load(
        K + k_entry * stride_kb * UNIT + head * stride_kh * UNIT + k_row[:, None] * stride_kn * UNIT + d[None, :],
        mask=kd_ok,
        other=0.0,
    )
    v = tl.load(
        V + k_entry * stride_vb * UNIT + head * stride_vh * UNIT + k_row[:, None] * stride_vn * UNIT + d[None, :],
        mask=kd_ok,
        other=0.0,
    )
    bias = tl.zeros([BLOCK_N], tl.float32)
    if HAS_BIAS:
        bias = tl.load(BIAS + k_entry * num_keys + k_row, mask=k_ok, other=0.0)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_N], tl.float32)
    for step in range(0, BLOCKS_PER_SPLIT):
        m = (split * BLOCKS_PER_SPLIT + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        q_row = tl.cast(q_first, tl.int64) + m
        q_ok = m < q_count
        qd_ok = q_ok[:, None] & d_ok[None, :]
        q = tl.load(
            Q + q_entry * stride_qb * UNIT + head * stride_qh * UNIT + q_row[:, None] * stride_qn * UNIT + d[None, :],
            mask=qd_ok,
            other=0.0,
        )
        g = tl.load(
            G + q_entry * stride_gb * UNIT + head * stride_gh * UNIT + q_row[:, None] * stride_gn * UNIT + d[None, :],
            mask=qd_ok,
            other=0.0,
        )
        stat = (q_entry * H + head) * num_queries + q_row
        lse = tl.load(LSE + stat, mask=q_ok, other=float("-inf"))
        delta = tl.load(DELTA + stat, mask=q_ok, other=0.0)
        p, ds = _weights_and_gradient(
            q, tl.trans(k), tl.trans(v), g, lse, delta, bias, k_ok, lse > float("-inf"), scale, PRECISION
        )
        dv += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision=PRECISION)
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
        dbias += tl.sum(ds, 0)
        if WRITE_DQ:  # all keys are in this tile
            dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION) * scale
            o = DQ + ((q_entry * num_queries + q_row) * H + head)[:, None] * D + d[None, :]
            tl.store(o, dq.to(DQ.dtype.element_ty), mask=(m < q_stored)[:, None] & d_ok[None, :])
    o = split * tl.cast(split_stride, tl.int64) + ((k_entry * num_keys + k_row) * H + head)[:, None] * D + d[None, :]
    stored = (key < k_stored)[:, None] & d_ok[None, :]
    tl.store(DK + o, (dk * scale).to(DK.dtype.element_ty), mask=stored)
    tl.store(DV + o, dv.to(DV.dtype.element_ty), mask=stored)
    if HAS_BIAS:  # [SPLITS, B, H, Nk]: added up by the caller, in fixed order
        b_row = split * tl.cast(split_stride // D, tl.int64) + (k_entry * H + head) * num_keys + k_row
        tl.store(DBIAS + b_row, dbias, mask=key < k_stored)


@triton.jit
def pruned_attention_dq_kernel(
    Q,
    K,
    V,
    G,
    BIAS,
    DELTA,
    LSE,
    KEY_LEN,
    QUERY_LEN,
    CU_Q,
    CU_K,
    DQ,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_gb,
    stride_gh,
    stride_gn,
    num_queries,
    num_keys,
    blocks,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_K_BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_KEY_LEN: tl.constexpr,
    HAS_QUERY_LEN: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
):
    block, head, item = _place(blocks, H)
    q_entry, q_first, q_count = _item_rows(QUERY_LEN, CU_Q, item, num_queries, HAS_QUERY_LEN, PACKED)
    k_entry, k_first, k_count = _item_rows(KEY_LEN, CU_K, item, num_keys, HAS_KEY_LEN, PACKED)
    q_entry, k_entry = tl.cast(q_entry, tl.int64), tl.cast(k_entry, tl.int64)
    q_stored = q_count if PACKED else num_queries
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q_row = tl.cast(q_first, tl.int64) + m
    d = tl.arange(0, BLOCK_D)
    d_ok, q_ok = d < D, m < q_count
    qd_ok = q_ok[:, None] & d_ok[None, :]
    q = tl.load(
        Q + q_entry * stride_qb * UNIT + head * stride_qh * UNIT + q_row[:, None] * stride_qn * UNIT + d[None, :],
        mask=qd_ok,
        other=0.0,
    )
    g = tl.load(
        G + q_entry * stride_gb * UNIT + head * stride_gh * UNIT + q_row[:, None] * stride_gn * UNIT + d[None, :],
        mask=qd_ok,
        other=0.0,
    )
    stat = (q_entry * H + head) * num_queries + q_row
    lse = tl.load(LSE + stat, mask=q_ok, other=float("-inf"))
    delta = tl.load(DELTA + stat, mask=q_ok, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for step in range(0, NUM_K_BLOCKS):
        key = step * BLOCK_N + tl.arange(0, BLOCK_N)
        k_row = tl.cast(k_first, tl.int64) + key
        k_ok = key < k_count
        kd_ok = k_ok[:, None] & d_ok[None, :]
        k = tl.load(
            K + k_entry * stride_kb * UNIT + head * stride_kh * UNIT + k_row[:, None] * stride_kn * UNIT + d[None, :],
            mask=kd_ok,
            other=0.0,
        )
        v = tl.load(
            V + k_entry * stride_vb * UNIT + head * stride_vh * UNIT + k_row[:, None] * stride_vn * UNIT + d[None, :],
            mask=kd_ok,
            other=0.0,
        )
        bias = tl.zeros([BLOCK_N], tl.float32)
        if HAS_BIAS:
            bias = tl.load(BIAS + k_entry * num_keys + k_row, mask=k_ok, other=0.0)
        _, ds = _weights_and_gradient(
            q, tl.trans(k), tl.trans(v), g, lse, delta, bias, k_ok, lse > float("-inf"), scale, PRECISION
        )
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    o = DQ + ((q_entry * num_queries + q_row) * H + head)[:, None] * D + d[None, :]
    tl.store(o, (dq * scale).to(DQ.dtype.element_ty), mask=(m < q_stored)[:, None] & d_ok[None, :])


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


VECTORS = ("key_bias", "key_len", "query_len", "cu_q", "cu_k")


def _same(name: str, t: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    if t.device != q.device:
        raise ValueError(
            f"pruned_attention: {name} is on {t.device}, q on {q.device}; all tensors must be on one device"
        )
    return t


def _vector(name: str, t: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """A small tensor that the kernels read as contiguous, on q's device."""
    return None if t is None else _same(name, t, q).contiguous()


def _strides(*tensors: torch.Tensor) -> tuple[int, list[int]]:
    """(unit, batch, head and token strides in units). Triton knows of an argument only whether 16 divides it; the
    factor 8 as a constant shows it the 16-byte loads of every stride that 8 divides (head dimensions 24, 40, 80 side by
    side)."""
    strides = [s for t in tensors for s in t.stride()[:3]]
    unit = 8 if all(s % 8 == 0 for s in strides) else 1
    return unit, [s // unit for s in strides]


def _grid(blocks: int, heads: int, items: int) -> tuple[int]:
    if blocks * heads * items > MAX_GRID:
        raise ValueError(
            f"pruned_attention: {items} items x {heads} heads x {blocks} blocks exceed a launch of {MAX_GRID} blocks"
        )
    return (blocks * heads * items,)


def _flags(x: torch.Tensor, key_bias, key_len, query_len, cu_q) -> dict:
    return dict(
        HAS_BIAS=key_bias is not None,
        HAS_KEY_LEN=key_len is not None,
        HAS_QUERY_LEN=query_len is not None,
        PACKED=cu_q is not None,
        # three TF32 products give float32 accuracy on tensor cores; 16-bit inputs are exact anyway
        PRECISION="tf32x3" if x.dtype == torch.float32 else "ieee",
    )


def _guard(x: torch.Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def fwd(q, k, v, key_bias, key_len, query_len, cu_q, cu_k, max_q: int, max_k: int, scale: float):
    """The op pruned_attention_fwd: (out [B, Nq, H, D], lse [B, H, Nq])."""
    q, k, v = _rows(q), _rows(_same("k", k, q)), _rows(_same("v", v, q))
    batch, heads, queries, dim = q.shape
    bias, *vectors = (
        _vector(n, t, q) for n, t in zip(VECTORS, (key_bias, key_len, query_len, cu_q, cu_k), strict=True)
    )
    packed = cu_q is not None
    items = cu_q.shape[0] - 1 if packed else batch
    idle = batch * queries * heads * dim == 0 or items == 0 or max_q == 0 or k.shape[2] == 0 or max_k == 0
    if packed or idle:  # rows outside every item, and rows without keys: 0 and -inf
        out = q.new_zeros(batch, queries, heads, dim)
        lse = torch.full((batch, heads, queries), float("-inf"), device=q.device, dtype=torch.float32)
        if idle:
            return out, lse
    else:
        out = q.new_empty(batch, queries, heads, dim)
        lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    block_d = _configs.next_power_of_2(dim)
    c = _configs.pruned_attention_fwd(max_q, max_k, block_d, q.element_size() == 4)
    blocks, (unit, strides) = _cdiv(max_q, c.block_m), _strides(q, k, v)
    with _guard(q):
        pruned_attention_fwd_kernel[_grid(blocks, heads, items)](
            q,
            k,
            v,
            bias,
            *vectors,
            out,
            lse,
            *strides,
            queries,
            k.shape[2],
            blocks,
            scale,
            H=heads,
            D=dim,
            BLOCK_D=block_d,
            BLOCK_M=c.block_m,
            BLOCK_N=c.block_n,
            NUM_K_BLOCKS=_cdiv(max_k, c.block_n),
            UNIT=unit,
            **_flags(q, key_bias, key_len, query_len, cu_q),
            num_warps=c.warps,
            num_stages=c.stages,
        )
    return out, lse


FUSED_QUERIES = 512  # up to here one program per head also writes dq, when all keys fit one tile
PROGRAMS_WANTED = 264  # two per SM of an H100: below this, long query loops are split


def bwd(grad, q, k, v, key_bias, delta, lse, key_len, query_len, cu_q, cu_k, max_q: int, max_k: int, scale: float):
    """The op pruned_attention_bwd: (dq [B, Nq, H, D], dk, dv [B, Nk, H, D], dbias [B, Nk])."""
    grad, k, v = (_rows(_same(n, t, q)) for n, t in (("grad", grad), ("k", k), ("v", v)))
    q = _rows(q)
    delta, lse = _vector("delta", delta, q), _vector("lse", lse, q)
    bias, *vectors = (
        _vector(n, t, q) for n, t in zip(VECTORS, (key_bias, key_len, query_len, cu_q, cu_k), strict=True)
    )
    batch, heads, queries, dim = q.shape
    keys, packed = k.shape[2], cu_q is not None
    items = cu_q.shape[0] - 1 if packed else batch
    make = q.new_zeros if packed else q.new_empty
    dq = make(batch, queries, heads, dim)
    if dq.numel() == 0 or keys == 0 or items == 0 or max_q == 0 or max_k == 0:
        dk, dv = (q.new_zeros(batch, keys, heads, dim) for _ in range(2))
        return dq.zero_(), dk, dv, q.new_zeros(batch, keys, dtype=torch.float32)
    block_d = _configs.next_power_of_2(dim)
    c = _configs.pruned_attention_bwd(max_q, max_k, block_d, q.element_size() == 4)
    q_blocks, k_blocks = _cdiv(max_q, c.block_m), _cdiv(max_k, c.block_n)
    fused = k_blocks == 1 and max_q <= FUSED_QUERIES
    splits = 1 if fused else max(1, min(q_blocks // 2, PROGRAMS_WANTED // (k_blocks * heads * items)))
    per_split = _cdiv(q_blocks, splits)
    splits = _cdiv(q_blocks, per_split)
    partial = torch.float32 if splits > 1 else q.dtype
    dk, dv = (make(splits, batch, keys, heads, dim, dtype=partial) for _ in range(2))
    dbias = make(splits, batch, heads, keys, dtype=torch.float32) if key_bias is not None else None
    unit, strides = _strides(q, k, v, grad)
    shape = dict(UNIT=unit, H=heads, D=dim, BLOCK_D=block_d, BLOCK_M=c.block_m, BLOCK_N=c.block_n)
    flags = _flags(q, key_bias, key_len, query_len, cu_q)
    with _guard(q):
        pruned_attention_dkv_kernel[_grid(k_blocks * splits, heads, items)](
            q,
            k,
            v,
            grad,
            bias,
            delta,
            lse,
            *vectors,
            dq,
            dk,
            dv,
            dbias,
            *strides,
            queries,
            keys,
            batch * keys * heads * dim,
            k_blocks * splits,
            scale,
            BLOCKS_PER_SPLIT=per_split,
            SPLITS=splits,
            WRITE_DQ=fused,
            **shape,
            **flags,
            num_warps=c.warps,
            num_stages=c.stages,
        )
        if not fused:
            pruned_attention_dq_kernel[_grid(q_blocks, heads, items)](
                q,
                k,
                v,
                grad,
                bias,
                delta,
                lse,
                *vectors,
                dq,
                *strides,
                queries,
                keys,
                q_blocks,
                scale,
                NUM_K_BLOCKS=k_blocks,
                **shape,
                **flags,
                num_warps=c.warps,
                num_stages=c.stages,
            )
    dk, dv = (t[0] if splits == 1 else t.sum(0).to(q.dtype) for t in (dk, dv))
    dbias = q.new_zeros(batch, keys, dtype=torch.float32) if dbias is None else dbias.sum((0, 2))
    return dq, dk, dv, dbias
