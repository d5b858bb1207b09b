"""pruned_attention: softmax attention over short, ragged or merged token sets, with a bias per key.

In: q [B, H, Nq, D], k, v [B, H, Nk, D] from layers/ after tokens were merged (CTM score, ToMe log size as bias), padded
(lengths) or packed (pruned_attention_packed). Out: [B, H, Nq, D]. Kernels: triton_kernels/pruned_attention.py (CUDA),
csrc/cpu/pruned_attention*.cpp.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._schema import LIBRARY
from ._autograd import differentiable, softmax_delta
from ._choices import call_class, device_arch, preferred
from ._dispatch import backend_reason, check_device, choose, is_plain, tensor_reason
from .reference.pruned_attention import key_importance_reference, pruned_attention_reference

BACKENDS = ("triton", "cpu")
_DTYPES = {
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "cpu": (torch.float32, torch.float16, torch.bfloat16),
}
MAX_HEAD_DIM = 256
SHORT_KEYS = 64  # up to here all keys are in one tile of the Triton kernel


class PrunedAttentionResult(NamedTuple):
    """What pruned_attention returns when more than the output is asked for."""

    out: Tensor  # [B, H, Nq, D]
    lse: Tensor  # [B, H, Nq] float32; -inf for rows without a key
    importance: Tensor | None  # [B, Nk] float32: attention from importance_rows, summed over them, mean over heads


def why_not(backend: str, q: Tensor) -> str | None:
    """Why `backend` cannot attend with queries like `q`, or None."""
    reason = backend_reason(backend) or tensor_reason(backend, q, _DTYPES[backend])
    if reason is None and not 0 < q.shape[-1] <= MAX_HEAD_DIM:
        reason = f"it takes head dimensions 1 to {MAX_HEAD_DIM}, got {q.shape[-1]}"
    return reason


@overload
def pruned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None = None,
    key_len: Tensor | None = None,
    query_len: Tensor | None = None,
    scale: float | None = None,
    *,
    return_lse: Literal[False] = False,
    importance_rows: None = None,
    impl: str = "auto",
) -> Tensor: ...
@overload
def pruned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None = None,
    key_len: Tensor | None = None,
    query_len: Tensor | None = None,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    importance_rows: int | Tensor | None = None,
    impl: str = "auto",
) -> Any: ...  # Tensor or PrunedAttentionResult
def pruned_attention(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    key_bias: Tensor | None = None,  # [B, Nk]
    key_len: Tensor | None = None,  # [B] int
    query_len: Tensor | None = None,  # [B] int
    scale: float | None = None,
    *,
    return_lse: bool = False,
    importance_rows: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor | PrunedAttentionResult:
    """Softmax attention out_i = sum_j softmax_j(scale q_i.k_j + key_bias_j) v_j over the keys j < key_len.

    Args:
        q, k, v: float32/float16/bfloat16 (float64 with the reference), any D, any batch/head/token strides.
        key_bias: [B, Nk] added to the scores of all heads and queries; -inf excludes a key. Differentiable.
        key_len: [B] valid keys per item; the rest is ignored (never read into a result).
        query_len: [B] valid queries per item; later rows of the result are 0.
        scale: factor of the scores, default D ** -0.5.
        return_lse: also return the log-sum-exp of every row.
        importance_rows: the first n query rows (int) or the rows listed in a 1-D index tensor; adds `importance`
            [B, Nk], the attention each key gets from them (PPT's pruning score). Not differentiable.
        impl: "auto", "reference", "cpu" or "triton".

    Returns:
        [B, H, Nq, D] in q's dtype, or a PrunedAttentionResult with return_lse or importance_rows.
        A query without any key gives 0 (lse -inf), never NaN. Differentiable with respect to q, k, v and key_bias.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> q, k = torch.rand(2, 8, 196, 64), torch.rand(2, 8, 49, 64)
        >>> pruned_attention(q, k, k, key_bias=torch.zeros(2, 49)).shape
        torch.Size([2, 8, 196, 64])

    Source: TCFormer (Zeng et al., CVPR 2022) eq. 6 (token score), ToMe (Bolya et al., ICLR 2023) eq. 1 (log size),
    PPT (Ma et al., ECCV 2022) section 3.2 (importance).
    """
    q, k, v = _autocast(q, k, v)
    _check("pruned_attention", q, k, v, key_bias, 4)
    batch = q.shape[0]
    for name, t in (("key_len", key_len), ("query_len", query_len)):
        if t is not None and (t.shape != (batch,) or t.is_floating_point() or t.device != q.device):
            raise ValueError(
                f"pruned_attention: {name} must be [{batch}] integers on {q.device}, got {list(t.shape)} "
                f"{t.dtype} on {t.device}"
            )
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    plain = key_len is None and query_len is None and not return_lse and importance_rows is None
    if impl == "auto" and plain and (is_plain() or _sdpa_is_faster(q, k, v, key_bias)):
        mask = None if key_bias is None else key_bias.to(q.dtype)[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    backend = choose("pruned_attention", impl, BACKENDS, why_not, q)
    if backend == "reference":
        out, lse, _ = pruned_attention_reference(q, k, v, key_bias, key_len, query_len, scale)
    else:
        out, lse = _run(q, k, v, key_bias, key_len, query_len, None, None, q.shape[2], k.shape[2], scale)
    importance = None
    if importance_rows is not None:
        with torch.no_grad():
            if isinstance(importance_rows, int):
                rows, lse_rows = q[:, :, :importance_rows], lse[:, :, :importance_rows]
            else:
                check_device("pruned_attention", "q", q, importance_rows=importance_rows)
                rows, lse_rows = q.index_select(2, importance_rows), lse.index_select(2, importance_rows)
            importance = key_importance_reference(rows, k, key_bias, key_len, lse_rows, scale)
    return PrunedAttentionResult(out, lse, importance) if return_lse or importance_rows is not None else out


def _sdpa_is_faster(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> bool:
    """Calls that torch's own kernel does at least as fast.

    CUDA: what the table of _choices.py says.
    CPU, measured on Zen 4, one and two threads, float32: below about 8 thousand scores the op's call overhead shows (15
    us more than SDPA's, 100 us more with gradients: eight times as many scores then); beyond 768 keys the score block
    leaves the caches (0.7x at 1024). A bias with a gradient sends
    SDPA to its slow path: never there.
    """
    gradient = torch.is_grad_enabled()
    if q.device.type == "cuda":
        grad = gradient and (q.requires_grad or k.requires_grad or v.requires_grad)
        rule = preferred(
            "pruned_attention", call_class(q, k.shape[2], device_arch(q.device), key_bias is not None, grad)
        )
        return rule is not None and rule.take == "sdpa"
    if q.device.type != "cpu":
        return False
    if key_bias is not None and gradient and key_bias.requires_grad:
        return False
    gradient = gradient and (q.requires_grad or k.requires_grad or v.requires_grad)
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    return scores < (1 << 16 if gradient else 1 << 13) or (k.shape[2] > 768 and q.dtype == torch.float32)


def plain_attention(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
) -> Tensor:  # [B, H, Nq, D]
    """softmax(q k^T / sqrt(D)) v of pose tokens, strided as they come: by our kernel or by torch's, whichever is the
    faster.

    Inference on the CPU and short sequences on the GPU (the 17 joints: all keys in one tile) take our kernel: 7.2
    against SDPA's 11.2 ms for 243 x 8 problems of 17 x 17 and 28.7 against 31.6 ms for 136 of 243 x 243 (D 64, one Zen
    4 core).
    """
    if not (is_plain() or torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)):
        if why_not("cpu", q) is None or (k.shape[2] <= SHORT_KEYS and why_not("triton", q) is None):
            return pruned_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def pruned_attention_packed(
    q: Tensor,  # [total_q, H, D]
    k: Tensor,  # [total_k, H, D]
    v: Tensor,  # [total_k, H, D]
    cu_seqlens_q: Tensor,  # [B + 1] int32
    cu_seqlens_k: Tensor,  # [B + 1] int32
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_bias: Tensor | None = None,  # [total_k]
    scale: float | None = None,
    *,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | PrunedAttentionResult:
    """pruned_attention on sequences laid end to end: item b owns rows cu_seqlens[b] .. cu_seqlens[b + 1].

    Args:
        q, k, v: packed tokens; dtypes as in pruned_attention.
        cu_seqlens_q, cu_seqlens_k: ascending offsets, first 0, last the total.
        max_seqlen_q, max_seqlen_k: no sequence is longer (sizes the launch).
        key_bias: [total_k].
        scale, return_lse, impl: as in pruned_attention.

    Returns:
        [total_q, H, D], or a PrunedAttentionResult whose lse is [H, total_q]. Differentiable like pruned_attention.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> q = torch.rand(5, 8, 24)
        >>> cu = torch.tensor([0, 2, 5], dtype=torch.int32)
        >>> pruned_attention_packed(q, q, q, cu, cu, 3, 3).shape
        torch.Size([5, 8, 24])
    """
    q, k, v = _autocast(q, k, v)
    _check("pruned_attention_packed", q, k, v, key_bias, 3)
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu.dim() != 1 or cu.shape[0] < 1 or cu.dtype != torch.int32 or cu.device != q.device:
            raise ValueError(
                f"pruned_attention_packed: {name} must be [B + 1] int32 on {q.device}, got {list(cu.shape)} "
                f"{cu.dtype} on {cu.device}"
            )
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"pruned_attention_packed: cu_seqlens_k must be like cu_seqlens_q {list(cu_seqlens_q.shape)}, got "
            f"{list(cu_seqlens_k.shape)}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    backend = choose("pruned_attention_packed", impl, BACKENDS, why_not, q)
    if backend == "reference":
        out, lse = _packed_reference(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_bias, scale)
    else:
        out, lse = _run(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            None if key_bias is None else key_bias[None],
            None,
            None,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            scale,
        )
        out, lse = out[0].transpose(0, 1), lse[0]
    return PrunedAttentionResult(out, lse, None) if return_lse else out


def _packed_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, key_bias: Any, scale: float
) -> Any:
    """Unpacks into padded items (gathers with clamped rows), attends, packs the valid rows again."""

    def rows(cu: Tensor, longest: int, total: int) -> tuple[Tensor, Tensor]:
        position = cu[:-1, None].long() + torch.arange(longest, device=cu.device)
        return position.clamp(max=max(total - 1, 0)), (cu[1:] - cu[:-1])

    q_rows, q_len = rows(cu_q, max_q, q.shape[0])
    k_rows, k_len = rows(cu_k, max_k, k.shape[0])
    bias = None if key_bias is None else key_bias[k_rows]
    padded = (q[q_rows].transpose(1, 2), k[k_rows].transpose(1, 2), v[k_rows].transpose(1, 2))
    out, lse, _ = pruned_attention_reference(*padded, bias, k_len, q_len, scale)
    # token t sits in the last item that starts at or before it; a token beyond the last item in an item of zeros
    token = torch.arange(q.shape[0], device=q.device)
    item = (token[:, None] >= cu_q[None, 1:]).sum(1)
    slot = (token - cu_q[item].long()).clamp(max=max(max_q - 1, 0))
    out, lse = F.pad(out, (0, 0, 0, 0, 0, 0, 0, 1)), F.pad(lse, (0, 0, 0, 0, 0, 1), value=-torch.inf)
    return out[item, :, slot], lse[item, :, slot].transpose(0, 1)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)
    return tensors


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, dim: int) -> None:
    layout = "[B, H, Nq, D]" if dim == 4 else "[total_q, H, D]"
    if q.dim() != dim or q.shape[-1] == 0:
        raise ValueError(f"{op}: q must be {layout} with D >= 1, got {list(q.shape)}")
    if not q.is_floating_point():
        raise TypeError(f"{op}: q must be floating point, got {q.dtype}")
    keys = -2 if dim == 4 else 0
    want = list(q.shape)
    want[keys] = k.shape[keys] if k.dim() == dim else -1
    for name, t in (("k", k), ("v", v)):
        if list(t.shape) != want or t.dtype != q.dtype or t.device != q.device:
            raise ValueError(
                f"{op}: {name} must be {want} {q.dtype} on {q.device}, got {list(t.shape)} {t.dtype} on {t.device}"
            )
    if key_bias is not None:
        bias_shape = [q.shape[0], k.shape[2]] if dim == 4 else [k.shape[0]]
        if list(key_bias.shape) != bias_shape or not key_bias.is_floating_point() or key_bias.device != q.device:
            raise ValueError(
                f"{op}: key_bias must be {bias_shape} floating point on {q.device}, got {list(key_bias.shape)} "
                f"{key_bias.dtype} on {key_bias.device}"
            )


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Any,
    key_len: Any,
    query_len: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: Any,
    max_k: Any,
    scale: float,
) -> Any:
    dtype = q.dtype
    if q.device.type == "cpu" and dtype != torch.float32:  # the C++ kernel is float32
        q, k, v = q.float(), k.float(), v.float()
    bias = None if key_bias is None else key_bias.float()
    # clamped first: a length that int32 cannot hold must not become another one
    lens = [
        None if t is None else t.clamp(0, n).to(torch.int32)
        for t, n in ((key_len, k.shape[2]), (query_len, q.shape[2]))
    ]
    out, lse = _pruned_attention_fwd(q, k, v, bias, *lens, cu_q, cu_k, max_q, max_k, scale)
    return out.transpose(1, 2).to(dtype), lse


@register_flop_formula(torch.ops.tore_fast.pruned_attention_fwd)
def _fwd_flops(q_shape: Any, k_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Two products over all pairs, as if every sequence had the full length: lengths are values."""
    batch, heads, queries, dim = q_shape
    return 4 * batch * heads * queries * k_shape[2] * dim


@register_flop_formula(torch.ops.tore_fast.pruned_attention_bwd)
def _bwd_flops(grad_shape: Any, q_shape: Any, k_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 5 * _fwd_flops(q_shape, k_shape) // 2  # scores again, gradients of weights, q, k and v


@torch.library.register_fake("tore_fast::pruned_attention_fwd")
def _fwd_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Any,
    key_len: Any,
    query_len: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: Any,
    max_k: Any,
    scale: float,
) -> Any:
    batch, heads, queries, dim = q.shape
    return q.new_empty(batch, queries, heads, dim), q.new_empty(batch, heads, queries, dtype=torch.float32)


@torch.library.register_fake("tore_fast::pruned_attention_bwd")
def _bwd_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Any,
    delta: Tensor,
    lse: Tensor,
    key_len: Any,
    query_len: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: Any,
    max_k: Any,
    scale: float,
) -> Any:
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    return (
        q.new_empty(batch, queries, heads, dim),
        q.new_empty(batch, keys, heads, dim),
        q.new_empty(batch, keys, heads, dim),
        q.new_empty(batch, keys, dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, key_bias, key_len, query_len, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, key_bias, *output, key_len, query_len, cu_q, cu_k)


def _backward(ctx: Any, grad: Tensor, grad_lse: Any) -> Any:
    q, k, v, key_bias, out, lse, key_len, query_len, cu_q, cu_k = ctx.saved_tensors
    delta, grad = softmax_delta(grad, grad_lse, out)
    dq, dk, dv, dbias = torch.ops.tore_fast.pruned_attention_bwd(
        grad.transpose(1, 2),
        q,
        k,
        v,
        key_bias,
        delta,
        lse,
        key_len,
        query_len,
        cu_q,
        cu_k,
        ctx.max_q,
        ctx.max_k,
        ctx.scale,
    )
    nones = (None,) * 7
    return (*(g.transpose(1, 2) for g in (dq, dk, dv)), None if key_bias is None else dbias, *nones)


_pruned_attention_fwd = differentiable("pruned_attention_fwd", _setup_context, _backward)


def _triton_fwd(*args: Any) -> Any:
    from ..triton_kernels import pruned_attention as kernels  # imports triton: only when a CUDA tensor arrives

    return kernels.fwd(*args)


def _triton_bwd(*args: Any) -> Any:
    from ..triton_kernels import pruned_attention as kernels

    return kernels.bwd(*args)


LIBRARY.impl("pruned_attention_fwd", _triton_fwd, "CUDA")
LIBRARY.impl("pruned_attention_bwd", _triton_bwd, "CUDA")
