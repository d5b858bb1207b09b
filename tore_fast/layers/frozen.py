"""Values that follow from the weights alone, kept for inference: a mixin that knows when to forget them.

Used by layers/dense.py (weights in the matrix product's own layout) and layers/tra.py (projected queries).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Between `freeze()` and training mode, `kept` computes each value once; loading weights or moving the module forgets all.

    Copies and pickles of a frozen module are not frozen.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._kept: dict[Hashable, tuple[tuple, Tensor]] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def freeze(self) -> None:
        """Keep derived values from now on; weights that are changed in place are noticed, except through `.data`."""
        self._kept = {}

    def thaw(self) -> None:
        self._kept = None

    @property
    def frozen(self) -> bool:
        return self._kept is not None

    def kept(self, name: Hashable, sources: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
        """compute(), or its earlier result if frozen and none of `sources` has changed since."""
        if self._kept is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        stamp = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in sources)
        found = self._kept.get(name)
        if found is None or found[0] != stamp:
            found = self._kept[name] = (stamp, compute())
        return found[1]

    def train(self, mode: bool = True) -> Frozen:
        if mode:
            self.thaw()
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs):
        self.thaw()
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}


def _forget(module: Frozen, _) -> None:
    module.thaw()


def freeze(model: nn.Module) -> None:
    """Freezes every part of a model that can be; the weights then take up to five times their memory on a CPU."""
    for module in model.modules():
        if isinstance(module, Frozen):
            module.freeze()
