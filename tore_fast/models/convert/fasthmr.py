"""Official files of the FastHMR family -> our state dicts: HMR2.0, CameraHMR, HumanFoV, DenseKP, MLD (fasthmr.md 1.7, 2, 7).

In: a path to an official checkpoint (Lightning pickle, torch or safetensors); out: a model loaded strictly. Nothing of a
pickle is executed: torch's weights_only reader with a short allow-list of inert stand-ins.
"""

from __future__ import annotations
