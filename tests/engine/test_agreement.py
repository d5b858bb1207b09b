"""bfloat16 engine against float32 eager, one model of every family, inputs of real size.

Limits. bfloat16 rounds to 2^-9 = 0.2 % of a number. A product averages that away over its terms, so what reaches the output is
the rounding of the features in the last dozens of layers, added up as a random walk: 1 to 2 % of the output's spread for the
random weights here, which amplify more than trained ones. A mean difference of 3 % of the mean size is therefore the limit, 30 %
for the worst number: an error in an island (coordinates, rotations, softmax) is far above both. Trained weights are held to
lengths: mean vertex difference 3 mm (the default model's own error is 40 mm and more), landmarks 0.5 % of the crop's side.
"""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from tore_fast.engine import Engine
from tore_fast.models import create_model
from tore_fast.models._inputs import input_shape

FAMILIES = [
    "fastmetro_s_r50",
    "fastmetro_tore_s_eb0",
    "metro_r50",
    "metro_tore_r50",
    "hmr2_vitt",
    "tcformer_light_hmr",
    "ppt_s",
    "tcformer_light",
    "mixste_27",
    "hot_mixste_27",
    "motionbert_27",
    "mhformer_27",
    "motionagformer_27",
    "fasthmr_motion_d5",
]


def eager(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = torch.randn(2, *input_shape(model))
    want, got = eager(model, x), Engine(model, "cpu", "bf16", own=False)(x)
    for a, b in zip(tree_leaves(want), tree_leaves(got), strict=True):
        if not isinstance(a, torch.Tensor) or not a.is_floating_point():
            continue
        assert b.dtype == torch.float32
        size, difference = a.abs().mean(), (a - b).abs()
        print(
            f"{name} {list(a.shape)} mean {float(difference.mean() / size):.4f} worst {float(difference.max() / size):.3f}"
        )
        assert difference.mean() <= 0.03 * size and difference.max() <= 0.3 * size


def test_kept_frames_are_mostly_the_same():
    torch.manual_seed(0)
    model = create_model("hot_mixste_27").eval()
    x = torch.randn(8, 27, 17, 2)
    want, got = eager(model, x).index, Engine(model, "cpu", "bf16")(x).index
    same = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(want.numpy(), got.numpy())])
    print("same frames", same)
    assert same >= 0.7
