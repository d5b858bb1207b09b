"""Official files of the FastHMR family -> our state dicts: HMR2.0, CameraHMR, HumanFoV, DenseKP, MLD (fasthmr.md 1.7, 2, 7).

In: a path to an official checkpoint (Lightning pickle, torch or safetensors); out: a model loaded strictly. Nothing of a
pickle is executed: torch's weights_only reader with a short allow-list of inert stand-ins.
"""

from __future__ import annotations

from torch import Tensor


def mld_denoiser_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MLD's denoiser keys -> MotionDenoiser's: its second position table `mem_pos` is never read and is dropped."""
    return {k: v for k, v in state.items() if k != "mem_pos.pe"}
