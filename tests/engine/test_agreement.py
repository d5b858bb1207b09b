"""bfloat16 engine against float32 eager, one model of every family, inputs of real size.

Limits. bfloat16 rounds to 2^-9 = 0.2 % of a number. A product averages that away over its terms, so what reaches the
output is the rounding of the features in the last dozens of layers, added up as a random walk: 1 to 2 % of the output's
spread for the random weights here, which amplify more than trained ones. A mean difference of 3 % of the mean size is
therefore the limit, 30 % for the worst number (60 % for motion, whose twists are directions of regressed pairs: one
near zero turns far). Frames that are pruned are given, since another choice of frames is another computation; a test of
its own says how many differ. An error in an island (coordinates, rotations, softmax) is far above both. Trained weights
are held to lengths: mean vertex difference 2 mm (the default model's own error is 40 mm and more), landmarks 0.5 % of
the crop's side.
"""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from tore_fast.engine import Engine
from tore_fast.geometry.crop import crop_of_box
from tore_fast.geometry.warp import model_input
from tore_fast.models import create_model, load
from tore_fast.models._inputs import input_shape
from tore_fast.pipelines.demo_image import demo_image

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
    want = eager(model, x)
    index = want.index if model.facts.task == "lifting" else None
    got = Engine(model, "cpu", "bf16")(x, *(() if index is None else (index,)))
    worst = 0.6 if model.facts.task == "motion" else 0.3
    for a, b in zip(tree_leaves(want), tree_leaves(got), strict=True):
        if not isinstance(a, torch.Tensor) or not a.is_floating_point():
            continue
        assert b.dtype == torch.float32
        size, difference = a.abs().mean(), (a - b).abs()
        print(
            f"{name} {list(a.shape)} mean {float(difference.mean() / size):.4f} worst "
            f"{float(difference.max() / size):.3f}"
        )
        assert difference.mean() <= 0.03 * size and difference.max() <= worst * size


def test_kept_frames_are_mostly_the_same():
    torch.manual_seed(0)
    model = create_model("hot_mixste_27").eval()
    x = torch.randn(8, 27, 17, 2)
    want, got = eager(model, x).index, Engine(model, "cpu", "bf16")(x).index
    same = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(want.numpy(), got.numpy())])
    print("same frames", same)
    assert same >= 0.7


def test_the_trained_mesh_model():
    pixels, truth = demo_image()
    model = load("default")
    boxes = [truth.box, tuple(v + d for v, d in zip(truth.box, (-9, 4, 12, 20)))]
    x = torch.stack([model_input(pixels, crop_of_box(b), model.config.image_size) for b in boxes])
    want, got = eager(model, x), Engine(model, "cpu", "bf16")(x)
    far = 1000 * (want.vertices - got.vertices).norm(dim=-1)
    print(f"vertices mean {float(far.mean()):.2f} mm worst {float(far.max()):.2f} mm")
    assert far.mean() <= 2 and far.max() <= 12
    assert (want.camera - got.camera).abs().max() <= 0.02


def test_the_trained_landmarks():
    pixels, truth = demo_image()
    model = load("body_landmarks")
    x = model_input(pixels, crop_of_box(truth.box), 256)[None]
    x = (
        x * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    ).clamp(0, 1)
    want, got = eager(model, x), Engine(model, "cpu", "bf16")(x)
    far = (want[0] - got[0])[..., :2].norm(dim=-1)
    print(f"landmarks mean {float(far.mean()):.2f} px worst {float(far.max()):.2f} px")
    assert far.mean() <= 0.005 * 256 and far.max() <= 0.02 * 256
