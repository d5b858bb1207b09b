"""Autograd of the compiled ops: one formula, registered for torch.compile and export, and a short way to it in eager
mode.

In: the formula (setup_context, backward) of ops/<stem>.py; out: the callable its public function uses. The registered
form costs about 150 us of Python per forward and backward (schema defaults filled in, zero gradients of unused outputs
made, checks of the wrapper; torch 2.11, Zen 4), an autograd.Function of our own about 60.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable(op: str, setup_context: Callable, backward: Callable) -> Callable:
    """Registers the autograd formula of torch.ops.tore_fast.<op>; returns a callable with the op's positional
    arguments.

    The callable is the op itself wherever something records or transforms the program (torch.compile, export,
    torch.func), so that a graph holds the op, and an autograd.Function around the op's kernel in plain eager mode.
    """

    def lean(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)  # backward meets None for outputs nobody differentiates
        setup_context(ctx, inputs, output)

    torch.library.register_autograd(f"tore_fast::{op}", backward, setup_context=lean)
    packet = getattr(torch.ops.tore_fast, op)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = _below_autograd(packet.default, inputs)
            lean(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return packet(*inputs)
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            return Eager.apply(*inputs)
        return _below_autograd(packet.default, inputs)

    return call


def _below_autograd(op: Callable, inputs: tuple) -> Any:
    with torch._C._AutoDispatchBelowAutograd():  # the op's Python autograd wrapper has nothing to do here
        return op(*inputs)


def softmax_delta(grad: Tensor | None, grad_lse: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor]:
    """(delta [B, H, N], grad [B, N, H, D]): what the softmax's gradient subtracts in row i, dO_i . O_i - dlse_i.

    Either gradient may be None (nobody asked for that output).
    """
    if grad is None:
        grad = torch.zeros_like(out)
    delta = torch.linalg.vecdot(grad.float(), out.float()).transpose(1, 2)
    return (delta if grad_lse is None else delta - grad_lse), grad
