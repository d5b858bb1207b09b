"""The built-in weights: the model `tore-fast predict` uses when none is named, the one for right hands, and the nets
that find people and their landmarks.

Meshes: our own weights, trained on our own synthetic images. Person detector and landmarks: MediaPipe's. The checkpoint
folders lie in models/assets; their config.json says whose they are, on what they were trained and how good they are.
"""

from __future__ import annotations

from pathlib import Path

BUILT_IN = {
    "default": "default",
    "tore_default": "default",
    "tore_default_hand": "default_hand",
    "person_detector": "person_detector",
    "body_landmarks": "body_landmarks",
}
"""Name a user gives -> folder in models/assets."""


def default_folder(name: str = "default") -> Path:
    """Folder of a built-in checkpoint.

    Raises:
        FileNotFoundError: this installation carries no trained weights.
    """
    folder = Path(__file__).resolve().parent / "assets" / BUILT_IN[name]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"tore_fast: this installation carries no trained weights of {name}; name a checkpoint (--checkpoint PATH) "
            "or train one with `tore-fast train`"
        )
    return folder
