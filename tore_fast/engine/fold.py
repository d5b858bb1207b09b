"""Batch norms folded into the convolution in front of them, found by watching one forward pass.

A norm is folded only where its input is the very tensor that a convolution gave, where both ran once, and where nothing
else read that tensor. So it works for every way of writing a backbone: numbered children, named attributes, timm's
norms with an activation inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def has_batch_norms(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in model.modules())


def fold_batch_norms(model: nn.Module, run: Callable[[], Any]) -> int:
    """Folds what can be folded, in place; returns how many norms are gone. Results change by rounding only.

    Args:
        model: in eval mode. run: a call of the model with any input.

    Raises:
        RuntimeError: in training mode, where a norm depends on the batch.
    """
    if model.training:
        raise RuntimeError(f"fold_batch_norms: {type(model).__name__} is in training mode; call eval() first")
    watch = _Watch(model)
    with torch.no_grad(), watch:
        run()
    parents = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    places = Counter(child for parent in model.modules() for _, child in parent.named_children())
    shared = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    folded = 0
    for norm, conv in watch.pairs():
        rest = _without_norm(norm)
        if rest is None or places[norm] != 1 or shared[id(conv.weight)] != 1 or not _keeps_statistics(norm):
            continue
        if isinstance(conv, TRANSPOSED) and conv.groups != 1:
            continue
        _fold(conv, norm)
        parent, name = parents[norm]
        setattr(parent, name, rest)
        folded += 1
    return folded


def _keeps_statistics(norm: _BatchNorm) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _without_norm(norm: Any) -> nn.Module | None:
    """What is left of the layer without its norm; None for a kind that is not known."""
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d" and hasattr(norm, "act"):  # timm
        return norm.act
    return None


def _fold(conv: Any, norm: _BatchNorm) -> None:
    dtype = conv.weight.dtype
    bias = None if conv.bias is None else conv.bias.double()
    scale = None if norm.weight is None else norm.weight.double()
    shift = None if norm.bias is None else norm.bias.double()
    mean, var = norm.running_mean.double(), norm.running_var.double()  # type: ignore[union-attr]
    turned = isinstance(conv, TRANSPOSED)
    weight, bias = fuse_conv_bn_weights(conv.weight.double(), bias, mean, var, norm.eps, scale, shift, turned)
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)


class _Watch(TorchFunctionMode):
    """Which convolution's result each norm read, and which results something else read as well."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._made: dict[int, tuple[Tensor, nn.Module]] = {}  # id of a result -> the result (held: ids are not reused)
        self._read: dict[nn.Module, nn.Module] = {}  # norm -> convolution
        self._elsewhere: set[nn.Module] = set()
        self._calls: Counter[nn.Module] = Counter()
        self._norm: nn.Module | None = None  # the one that runs
        self._hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        for module in self._model.modules():
            if isinstance(module, CONVOLUTIONS):
                self._hooks.append(module.register_forward_hook(self._made_by))
            elif isinstance(module, _BatchNorm):
                self._hooks.append(module.register_forward_pre_hook(self._norm_starts))
                self._hooks.append(module.register_forward_hook(self._norm_ends))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def pairs(self) -> list[tuple[_BatchNorm, Any]]:
        once = [(n, c) for n, c in self._read.items() if self._calls[n] == 1 and self._calls[c] == 1]
        return [(n, c) for n, c in once if c not in self._elsewhere]  # type: ignore[misc]

    def _made_by(self, conv: nn.Module, _args: Any, out: Tensor) -> None:
        self._calls[conv] += 1
        self._made[id(out)] = (out, conv)

    def _norm_starts(self, norm: nn.Module, args: Any) -> None:
        self._calls[norm] += 1
        self._norm = norm
        found = self._made.get(id(args[0]))
        if found is not None:
            if found[1] in self._read.values():
                self._elsewhere.add(found[1])
            self._read[norm] = found[1]

    def _norm_ends(self, _norm: nn.Module, _args: Any, _out: Any) -> None:
        self._norm = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._norm is None:
            for leaf in tree_leaves((args, kwargs)):
                found = self._made.get(id(leaf)) if isinstance(leaf, Tensor) else None
                if found is not None:
                    self._elsewhere.add(found[1])
        return func(*args, **(kwargs or {}))
