"""tore_fast: token reduction for 3D human mesh and pose recovery.

`tore_fast.models` (create_model, list_models) -> `tore_fast.layers` -> `tore_fast.ops` (kernels);
`tore_fast.pipelines` and the `tore-fast` command sit on top.
"""

from .version import __version__

__all__ = ["__version__"]
