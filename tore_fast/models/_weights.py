"""What every reader of weight files says of one that does not load or does not fit: one line that names the file.

Used by _hub.py (our folders) and convert/ (official files).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; ValueError that names a damaged file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise unreadable(path, e) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error to raise for a file that a reader gave up on with `error`: what the file is, where its first bytes tell."""
    with path.open("rb") as f:
        head = f.read(256)
    text = str(error).partition("\n")[0].partition(". ")[0][:160]
    if not head:
        reason = "the file is empty"
    elif head.startswith(b"version https://git-lfs"):
        reason = "a Git LFS pointer; fetch the file itself, e.g. with `git lfs pull`"
    elif head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        reason = "a web page, so the download went wrong"
    elif all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        reason = "a text file"
    elif head.startswith(b"PK") or path.suffix == ".safetensors":
        reason = f"damaged or cut off: {text}"
    else:
        reason = (
            "it ends too early"
            if isinstance(error, EOFError)
            else f"{type(error).__name__}: {text}"
            if text
            else type(error).__name__
        )
    return ValueError(f"{path}: not a readable weight file ({reason})")


def load_strict(
    model: nn.Module, state: dict[str, Tensor], source: str, what: str | None = None, assign: bool = False
) -> None:
    """Loads every key or raises one ValueError that counts and names what does not fit.

    Args:
        what: the model, for the message; default its class.
        assign: take the tensors over instead of copying them.
    """
    want = model.state_dict()
    missing, extra = [k for k in want if k not in state], [k for k in state if k not in want]
    wrong = [
        f"{k} {list(state[k].shape)} (expected {list(v.shape)})"
        for k, v in want.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or extra or wrong:
        parts = ((missing, "missing"), (extra, "unexpected"), (wrong, "of another shape"))
        text = "; ".join(f"{len(k)} keys {part}, first: {', '.join(k[:3])}" for k, part in parts if k)
        raise ValueError(f"{source}: does not fit {what or type(model).__name__}: {text}")
    model.load_state_dict(state, assign=assign)
