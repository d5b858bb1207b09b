"""mesh_attention: attention of joint and vertex tokens where a vertex sees the joints and its mesh neighbours only.

In: q, k, v [B, H, J + V, D] from layers/ (FastMETRO decoder, TORE's NSR with J = 0) and a MeshTopology prepared once
(ops/_sparse.py). Out: [B, H, J + V, D]. Kernels: csrc/cpu/mesh_attention*.cpp, csrc/cuda/mesh_attention.cu.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._autograd import differentiable, softmax_delta
from ._choices import call_class, device_arch, preferred
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from ._sparse import MeshTopology
from .reference.mesh_attention import mesh_attention_reference

BACKENDS = ("cuda", "sdpa", "cpu")
_DTYPES = {
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
    "sdpa": (torch.float32, torch.float16, torch.bfloat16),
    "cpu": (torch.float32, torch.float16, torch.bfloat16),
}
MAX_HEAD_DIM = {"cuda": 64, "sdpa": 256, "cpu": 256}
# bytes of shared memory a block may ask for on the smallest GPUs at hand (sm_86, sm_89, sm_120; sm_80 163 KB, sm_90 227
# KB)
MAX_SHARED = 99 * 1024


class MeshAttentionResult(NamedTuple):
    """What mesh_attention returns when more than the output is asked for."""

    out: Tensor  # [B, H, T, D]
    lse: Tensor  # [B, H, T] float32, log-sum-exp of the scaled allowed scores
    weights: Tensor | None  # [B, T, T] float32, mean over heads, before dropout; None unless return_weights


def why_not(
    backend: str, q: Tensor, return_weights: bool = False, joints: int = 0, bias: bool = True, plain: bool = True
) -> str | None:
    """Why `backend` cannot attend with queries like `q`, or None. `bias`: the topology has one; `plain`: neither
    dropout nor the log-sum-exp is asked for."""
    reason = backend_reason(backend) or tensor_reason(backend, q, _DTYPES[backend])
    if reason is None and return_weights:
        reason = "return_weights needs the dense weights, which only impl='reference' forms"
    if reason is None and q.shape[-1] > MAX_HEAD_DIM[backend]:
        reason = f"it takes head dimensions up to {MAX_HEAD_DIM[backend]}, got {q.shape[-1]}"
    if reason is None and backend == "cuda":
        reason = _strip_reason(joints, q.shape[2], q.shape[3])
    if reason is None and backend == "sdpa" and not plain:
        reason = "torch's kernels give no log-sum-exp and another dropout than ours"
    if reason is None and backend == "sdpa" and not bias:
        reason = "the topology holds no dense mask (mesh_topology makes one up to 1024 tokens)"
    return reason


def _order(q: Tensor, k: Tensor, v: Tensor) -> tuple[str, ...]:
    """BACKENDS, the one that the table prefers first."""
    if q.device.type != "cuda":
        return BACKENDS
    grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    rule = preferred("mesh_attention", call_class(q, k.shape[2], device_arch(q.device), False, grad))
    return BACKENDS if rule is None else (rule.take, *(b for b in BACKENDS if b != rule.take))


def _strip_reason(joints: int, tokens: int, dim: int) -> str | None:
    """The CUDA backward keeps two strips of the joint rows and their scores in shared memory (`strip_shared`)."""
    need = 8 * joints * ((16 if dim <= 16 else 32 if dim <= 32 else 64) + 4 + tokens)
    if need <= MAX_SHARED:
        return None
    return (
        f"its joint rows hold 8 joints (D + 4 + tokens) bytes of scores in shared memory, up to {MAX_SHARED}, "
        f"got {need} with {joints} joints and {tokens} tokens"
    )


@overload
def mesh_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    topology: MeshTopology,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: Literal[False] = False,
    *,
    return_lse: Literal[False] = False,
    seed: Tensor | None = None,
    impl: str = "auto",
) -> Tensor: ...
@overload
def mesh_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    topology: MeshTopology,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    *,
    return_lse: bool = False,
    seed: Tensor | None = None,
    impl: str = "auto",
) -> Any: ...  # Tensor or MeshAttentionResult
def mesh_attention(
    q: Tensor,  # [B, H, T, D], T = J + V
    k: Tensor,  # [B, H, T, D]
    v: Tensor,  # [B, H, T, D]
    topology: MeshTopology,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    *,
    return_lse: bool = False,
    seed: Tensor | None = None,  # [1] int64
    impl: str = "auto",
) -> Tensor | MeshAttentionResult:
    """Masked softmax attention, out_i = sum_j softmax_j(scale q_i.k_j) v_j over the keys j that token i may see.

    The first J = topology.joints tokens see everything and are seen by everything; vertex v also sees the vertices of
    its row of the topology. Equal to dense attention with topology.dense_mask(), at a cost that follows the mesh.

    Args:
        q, k, v: [B, H, T, D] float32/float16/bfloat16 (float64 with the reference), any batch/head/token strides.
        topology: MeshTopology on q's device with T = joints + num_vertices.
        scale: factor of the scores, default D ** -0.5.
        dropout_p: probability of dropping an attention weight; the rest is scaled by 1 / (1 - dropout_p).
        return_weights: also return the head-averaged weights [B, T, T] (dense: takes the reference path).
        return_lse: also return the log-sum-exp. With either, the result is a MeshAttentionResult.
        seed: the dropout mask's seed; drawn from q's device generator when absent. Same seed, same mask, on every impl.
        impl: "auto", "reference", "cpu", "cuda", or "sdpa" (torch's own kernels on CUDA, with the mask that the
            topology holds; "auto" takes it where the table of _choices.py says so, and where there is no CUDA build).

    Returns:
        [B, H, T, D] in q's dtype (softmax statistics and sums in float32), or a MeshAttentionResult.
        Differentiable with respect to q, k, v.

    Raises:
        ValueError: wrong shape, device or dropout. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> from tore_fast.ops import mesh_topology
        >>> ring = mesh_topology(torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0), joints=2)
        >>> q = k = v = torch.rand(1, 4, 8, 16)
        >>> mesh_attention(q, k, v, ring).shape
        torch.Size([1, 4, 8, 16])

    Source: FastMETRO (Cho et al., ECCV 2022), attention mask from the mesh adjacency, section 3.3; TORE's NSR (J = 0).
    """
    if not q.is_meta and torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, topology, dropout_p, seed)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if dropout_p > 0.0 and seed is None:
        seed = torch.randint(-(2**62), 2**62, (1,), dtype=torch.int64, device=q.device)
    plain = dropout_p == 0.0 and not return_lse
    asked = (q, return_weights, topology.joints, topology.bias is not None, plain)
    backend = choose("mesh_attention", impl, _order(q, k, v) if impl == "auto" else BACKENDS, why_not, *asked)
    weights = None
    if backend == "sdpa":
        assert topology.bias is not None
        mask = topology.bias.to(q.dtype)[:, : q.shape[2]]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if backend == "reference":
        out, lse, weights = mesh_attention_reference(
            q, k, v, topology.row_ptr, topology.col_idx, topology.joints, scale, dropout_p, seed
        )
        weights = weights.mean(1) if return_weights else None
    else:
        dtype = q.dtype
        if q.device.type == "cpu" and dtype != torch.float32:  # the C++ kernel is float32; casts are cheap beside it
            q, k, v = q.float(), k.float(), v.float()
        out, lse = _mesh_attention_fwd(q, k, v, *topology[:7], scale, dropout_p, seed)
        out = out.transpose(1, 2).to(dtype)
    return MeshAttentionResult(out, lse, weights) if return_lse or return_weights else out


def _check(q: Tensor, k: Tensor, v: Tensor, topology: MeshTopology, dropout_p: float, seed: Tensor | None) -> None:
    if q.dim() != 4:
        raise ValueError(f"mesh_attention: q must be [B, H, T, D], got {list(q.shape)}")
    for name, t in (("k", k), ("v", v)):
        if t.shape != q.shape or t.dtype != q.dtype or t.device != q.device:
            raise ValueError(
                f"mesh_attention: {name} must be like q {list(q.shape)} {q.dtype} on {q.device}, "
                f"got {list(t.shape)} {t.dtype} on {t.device}"
            )
    if not q.is_floating_point():
        raise TypeError(f"mesh_attention: q must be floating point, got {q.dtype}")
    tokens = topology.joints + topology.num_vertices
    if q.shape[2] != tokens:
        raise ValueError(
            f"mesh_attention: q has {q.shape[2]} tokens, the topology {topology.joints} joints + "
            f"{topology.num_vertices} vertices = {tokens}"
        )
    if q.shape[3] == 0:
        raise ValueError(f"mesh_attention: the head dimension must be positive, got {list(q.shape)}")
    check_device("mesh_attention", "q", q, seed=seed, **{f"topology.{n}": t for n, t in topology.tensors().items()})
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"mesh_attention: dropout_p must be in [0, 1), got {dropout_p}")


@register_flop_formula(torch.ops.tore_fast.mesh_attention_fwd)
def _fwd_flops(
    q_shape: Any,
    k_shape: Any,
    v_shape: Any,
    row_ptr: Tensor,
    col_idx: Tensor,
    t_row_ptr: Tensor,
    t_col_idx: Tensor,
    joints: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Two products over the open pairs: joints with everything, vertices by the pattern."""
    batch, heads, tokens, dim = q_shape
    vertices = tokens - joints
    pairs = joints * tokens + vertices * joints + col_idx[0]
    return 4 * batch * heads * pairs * dim


@register_flop_formula(torch.ops.tore_fast.mesh_attention_bwd)
def _bwd_flops(
    grad_shape: Any, q_shape: Any, k_shape: Any, v_shape: Any, delta: Tensor, lse: Tensor, *pattern: Any, **kwargs: Any
) -> int:
    """Scores again, gradients of weights, q, k and v: five products."""
    return 5 * _fwd_flops(q_shape, k_shape, v_shape, *pattern) // 2


@torch.library.register_fake("tore_fast::mesh_attention_fwd")
def _fwd_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    t_row_ptr: Tensor,
    t_col_idx: Tensor,
    joints: int,
    tiles: Any,
    t_tiles: Any,
    scale: float,
    dropout_p: float,
    seed: int,
) -> Any:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim), q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.register_fake("tore_fast::mesh_attention_bwd")
def _bwd_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    lse: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    t_row_ptr: Tensor,
    t_col_idx: Tensor,
    joints: int,
    tiles: Any,
    t_tiles: Any,
    scale: float,
    dropout_p: float,
    seed: int,
) -> Any:
    batch, heads, tokens, dim = q.shape
    return tuple(q.new_empty(batch, tokens, heads, dim) for _ in range(3))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, ctx.joints, tiles, t_tiles, ctx.scale, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, row_ptr, col_idx, t_row_ptr, t_col_idx, tiles, t_tiles, seed)


def _backward(ctx: Any, grad: Tensor, grad_lse: Any) -> Any:
    q, k, v, out, lse, row_ptr, col_idx, t_row_ptr, t_col_idx, tiles, t_tiles, seed = ctx.saved_tensors
    delta, grad = softmax_delta(grad, grad_lse, out)
    grads = torch.ops.tore_fast.mesh_attention_bwd(
        grad.transpose(1, 2),
        q,
        k,
        v,
        delta,
        lse,
        row_ptr,
        col_idx,
        t_row_ptr,
        t_col_idx,
        ctx.joints,
        tiles,
        t_tiles,
        ctx.scale,
        ctx.dropout_p,
        seed,
    )
    return *(g.transpose(1, 2) for g in grads), *[None] * 10


_mesh_attention_fwd = differentiable("mesh_attention_fwd", _setup_context, _backward)
