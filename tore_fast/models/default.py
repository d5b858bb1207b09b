"""The model `tore-fast predict` uses when none is named: our own weights, trained on our own synthetic images.

The checkpoint folder lies in models/assets/default; its config.json says on what it was trained and how good it is.
"""

from __future__ import annotations

from pathlib import Path


def default_folder() -> Path:
    """Folder of the built-in checkpoint.

    Raises:
        FileNotFoundError: this installation carries no trained weights.
    """
    folder = Path(__file__).resolve().parent / "assets" / "default"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            "tore_fast: this installation carries no trained default weights; name a checkpoint (--checkpoint PATH) "
            "or train one with `tore-fast train`"
        )
    return folder
