"""tore_fast: token reduction for 3D human mesh and pose recovery.

`tore_fast.models` (create_model, list_models) -> `tore_fast.layers` -> `tore_fast.ops` (kernels);
`tore_fast.Engine` runs a model fast, `tore_fast.accelerate` merges tokens in models of others; `tore_fast.pipelines`
and the `tore-fast` command sit on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _threads
from .version import __version__

_threads.settle()  # before torch is loaded, if it is not

if TYPE_CHECKING:
    from .accelerate import accelerate
    from .engine import Engine
    from .engine.export import export

__all__ = ["Engine", "__version__", "accelerate", "export"]


def __getattr__(name: str) -> Any:
    if name == "Engine":  # with it comes torch
        from .engine import Engine

        return Engine
    if name == "export":
        from .engine.export import export

        return export
    if name == "accelerate":  # the package, which can be called
        import importlib

        return importlib.import_module(".accelerate", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
