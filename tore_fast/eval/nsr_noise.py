"""TORE's noise test of the neural shape regressor (supplement, figure D6): how far vertices move when its input is
disturbed.

In: a model with GTR (FastMETRO_TORE, METRO_TORE) and crops; out: mean displacements. The paper adds Gaussian noise of
5, 7.5 and 10 % to the joint features that the NSR reads; joints and camera do not see it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = (0.05, 0.075, 0.1)


@torch.inference_mode()
def nsr_noise_test(
    model: nn.Module,
    images: Tensor,  # [B, 3, H, W], or features where the model has no backbone
    levels: tuple[float, ...] = LEVELS,
    repeats: int = 1,
    seed: int = 0,
) -> dict[float, float]:
    """Mean distance in millimetres between fine vertices with and without noise, by noise level.

    Args:
        model: in eval mode; the noise's deviation is `level` times that of the joint features.
        repeats: draws of noise per level, averaged.

    Raises:
        ValueError: a model without NSR.

    Example:
        >>> nsr_noise_test(create_model("fastmetro_tore_s_r50").eval(), torch.randn(2, 3, 224, 224))  # doctest: +SKIP
        {0.05: 1.9, 0.075: 2.8, 0.1: 3.7}
    """
    if not hasattr(model, "transformer_3"):
        raise ValueError(f"nsr_noise_test: {type(model).__name__} has no NSR; expected FastMETRO_TORE or METRO_TORE")
    plain = model(images).vertices
    devices = [images.device] if images.is_cuda else []
    moved = {}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for level in levels:
            runs = [(model(images, nsr_noise=level).vertices - plain).norm(dim=-1).mean() for _ in range(repeats)]
            moved[level] = 1000 * float(torch.stack(runs).mean())
    return moved
