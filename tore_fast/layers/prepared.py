"""prepare() and unprepare(): a module keeps for inference what follows from its weights alone.

In: a model in eval mode. What is kept: weights in the layout of a product's backend (layers/linear.py), terms that are
the same for every image or clip (layers/transformer.py, layers/tra.py), weights with a batch norm or a second weight
folded in (models/backbones/vit.py, layers/decoder_head.py). Outputs change by rounding only. One mechanism keeps it all
and notices changes: ops/_derived.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops import PackedWeight

if TYPE_CHECKING:
    from typing_extensions import Self

Model = TypeVar("Model", bound=nn.Module)
Source = Tensor | nn.Module


class _Recipe:
    """How a term is made. An object, not a tuple: torch.export walks through attributes that are tuples and
    dictionaries."""

    def __init__(self, sources: tuple[Source, ...], compute: Callable[[], Any]) -> None:
        self.compute = compute
        self._places = tuple(_places(sources))

    def sources(self) -> tuple[Tensor, ...]:
        return tuple(attributes[kind][name] for attributes, kind, name in self._places)


def _places(sources: tuple[Source, ...]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Where each tensor is found at the next call, when a parameter may be another object: attributes of its module,
    "_parameters" or "_buffers", name."""
    for source in sources:
        if isinstance(source, nn.Module):
            for module in source.modules():
                for kind in ("_parameters", "_buffers"):
                    names = (name for name, t in getattr(module, kind).items() if t is not None)
                    yield from ((module.__dict__, kind, name) for name in names)
        else:
            yield {"": {"": source}}, "", ""


class Prepared(nn.Module):
    """Base of modules that keep something between `prepare()` and `unprepare()`.

    Training mode, loading weights, moving and copying the module end it by themselves. Weights that are replaced or
    changed in place are noticed at the next call, except where torch.compile or torch.export took the values into a
    graph, or by a write through `.data`. A call that records gradients of the weights computes everything anew.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: PackedWeight | None = None
        self._recipes: dict[Hashable, _Recipe] = {}
        self.register_load_state_dict_post_hook(_forget)

    def prepare(self: Model) -> Model:
        """Keeps what follows from the weights, of this module and its parts; returns the module."""
        return prepare(self)

    def unprepare(self: Model) -> Model:
        """Forgets it; outputs have the bits of before `prepare()`. Returns the module."""
        return unprepare(self)

    @property
    def prepared(self) -> bool:
        return self._kept is not None

    @property
    def packed(self) -> PackedWeight | None:
        """What `ops.linear` keeps the weights of this module in."""
        return self._kept

    def keep_terms(self) -> None:
        """For subclasses: calls `keep` for each term of this module itself."""

    def keep(self, name: Hashable, sources: tuple[Source, ...], compute: Callable[[], Any]) -> None:
        """Computes a term now; `recall` gives it back. `sources`: tensors and modules that it is computed from."""
        assert self._kept is not None
        recipe = self._recipes[name] = _Recipe(sources, compute)
        self._kept.get(name, recipe.sources(), compute)

    def recall(self, name: Hashable) -> Any:
        """A kept term, computed again if a source has changed; None where there is none or its gradient is asked
        for."""
        if self._kept is None or name not in self._recipes:
            return None
        if torch.compiler.is_compiling():
            return self._kept.peek(name)
        recipe = self._recipes[name]
        sources = recipe.sources()
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            return None
        return self._kept.get(name, sources, recipe.compute)

    def kept(self, name: Hashable, sources: tuple[Tensor, ...], compute: Callable[[], Any]) -> Any:
        """compute(), in a prepared module only once: for terms that depend on sizes which only a call knows."""
        if self._kept is None or torch.compiler.is_compiling():
            return compute()
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            return compute()
        return self._kept.get(name, sources, compute)

    def _forget(self) -> None:
        self._kept = None
        self._recipes = {}

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._forget()
        return super().train(mode)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None, "_recipes": {}}


def _forget(module: Prepared, _incompatible: Any) -> None:
    module._forget()


def prepare(model: Model) -> Model:
    """Prepares every part of a model for inference and returns the model; one without such parts stays as it is.

    Call it last: in eval mode, on the final device, in the final dtype. On a CPU the weights then take up to five times
    their memory.

    Raises:
        RuntimeError: in training mode, where terms that are kept would skip dropout.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8)).eval()
        >>> prepare(model) is model
        True
    """
    if model.training:
        raise RuntimeError(f"{type(model).__name__}.prepare: call eval() first; terms that are kept would skip dropout")
    unprepare(model)
    parts = [m for m in model.modules() if isinstance(m, Prepared)]
    for part in parts:
        part._kept = PackedWeight()
    with torch.inference_mode(False), torch.no_grad():
        for part in parts:
            part.keep_terms()
    return model


def unprepare(model: Model) -> Model:
    """Undoes `prepare` in every part of a model; returns the model."""
    for module in model.modules():
        if isinstance(module, Prepared):
            module._forget()
    return model
