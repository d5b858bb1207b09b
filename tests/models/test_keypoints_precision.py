"""TCFormer in 16 bit, on large images and from the command line: agreement rates, memory, ablations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tore_fast.body import load_body
from tore_fast.cli._models import check_crops
from tore_fast.cli._train_options import TrainArgs, build_model, model_name
from tore_fast.data.synth import SynthGenerator
from tore_fast.geometry.warp import normalise_image
from tore_fast.models import create_model, save
from tore_fast.ops.dpc_knn_cluster import dpc_knn_cluster, why_not
from tore_fast.train.start import take_weights

TINY = dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def people():
    """Images with structure: on noise every clustering is a coin toss."""
    return normalise_image(SynthGenerator(load_body("free"), 128, seed=5, difficulty=0.3).batch(0, 4)["images"])


@pytest.fixture(scope="module")
def light():
    torch.manual_seed(0)
    return create_model("tcformer_light", num_classes=4).eval()


def together(cluster: torch.Tensor) -> torch.Tensor:
    """[B, N, N] whether two tokens share a cluster (cluster numbers are arbitrary)."""
    return cluster[:, :, None] == cluster[:, None]


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pairs that share a cluster in both, of the pairs that do in either."""
    a, b = together(a), together(b)
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clusters_of_rounded_tokens_agree_with_float32(light, people, dtype):
    """By rate, at least 97 % (measured here 99.8 % and more)."""
    caught = []
    hooks = [
        getattr(light, f"ctm{i}").register_forward_hook(lambda m, a, out: caught.append(out[1].x)) for i in (1, 2, 3)
    ]
    with torch.no_grad():
        light(people)
    for hook in hooks:
        hook.remove()
    assert [y.shape[1] for y in caught] == [1024, 256, 64]
    for y in caught:
        want, got = (dpc_knn_cluster(t, -(-y.shape[1] // 4), 5) for t in (y, y.to(dtype)))
        centres = sum(len(set(p.tolist()) & set(q.tolist())) for p, q in zip(want.centers, got.centers))
        assert centres / want.centers.numel() >= 0.97
        assert agreement(want.cluster, got.cluster) >= 0.97
    other = torch.randint(0, 16, caught[2].shape[:2])
    assert agreement(want.cluster, other) < 0.2, "the rate must be able to fail"


def test_autocast_keeps_the_clusters_of_a_whole_forward(light, people):
    """bf16 features through the network: the first clustering agrees by rate, the logits in direction."""
    with torch.no_grad():
        want, logits = light.forward_features(people), light(people)
        with torch.autocast("cpu", torch.bfloat16):
            got, rounded = light.forward_features(people), light(people)
    assert agreement(want[1].idx_token, got[1].idx_token) >= 0.8
    assert torch.nn.functional.cosine_similarity(logits, rounded.float()).min() > 0.99


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory_is_linear_in_the_tokens_up_to_a_megapixel():
    """Four times the tokens, part by part, take about four times the memory, not sixteen; tools/tcformer_memory.py
    measures."""
    tool = Path(__file__).parents[2] / "tools" / "tcformer_memory.py"
    done = subprocess.run([sys.executable, tool, "--narrow"], capture_output=True, text=True, check=True)
    found = {int(tokens): float(mib) for tokens, mib in re.findall(r"(\d+) tokens: (\d+) MiB", done.stdout)}
    assert list(found) == [4096, 16384, 65536]
    small, middle, large = found.values()
    assert small > 3, "no peak was seen"
    assert middle < 6 * small + 20 and large < 6 * middle
    # one 65,536 x 65,536 matrix would be 16,384, one of the 16,384 tokens of stage 2 1,024; the references keep those
    # of the parts
    assert large < (400 if why_not("cpu", torch.empty(1, 1, 1)) is None else 900)


def test_command_line_overrides(tmp_path):
    def built(name, changes, tags=(), checkpoint=None, **decided):
        args = TrainArgs(model=name, set=changes, checkpoint=checkpoint)
        return build_model(args, model_name(args, "tcformer_light"), tags, **decided)

    text = {
        "embed_dims": "16,32,48,64",
        "num_heads": "1,2,3,4",
        "mlp_ratios": "2,2,2,2",
        "depths": "1,1,1,1",
        "neck_channels": "32",
    }
    for changes in ({"reduction": "conv", "neck": "none"}, {"reduction": "topk"}, {"parts": "2,2,1,1,1,1"}):
        model = built("tcformer_light_wholebody", text | changes, num_keypoints=14).train()
        maps = model(torch.rand(2, 3, 64, 64))
        maps.square().sum().backward()
        assert maps.shape == (2, 14, 16, 16) and model.config.num_keypoints == 14
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert built("tcformer_light", {"qkv_bias": "false"}, num_classes=4).config.qkv_bias is False
    with pytest.raises(ValueError, match="--set depth: .* did you mean depths"):
        built("tcformer_light", {"depth": "3"}, num_classes=4)
    with pytest.raises(ValueError, match="--set num_classes: the data decides it"):
        built("tcformer_light", {"num_classes": "3"}, num_classes=4)
    with pytest.raises(ValueError, match="tcformer_light is not made for keypoints"):
        built("tcformer_light", {}, ("keypoints",), num_keypoints=14)
    # a folder brings its model and sizes; a head of other classes starts anew and is named
    save(create_model("tcformer_light", num_classes=4, **TINY), tmp_path, "tcformer_light")
    model = built("", {}, checkpoint=tmp_path, num_classes=7)
    assert model.config.embed_dims == TINY["embed_dims"] and model.config.num_classes == 7
    assert take_weights(model, tmp_path).endswith("head.weight, head.bias start anew")


def test_crops_that_a_model_cannot_read():
    tiny = create_model("tcformer_light", **TINY)
    for size in ((29, 29), (64, 29)):
        check_crops(tiny, size)
        with torch.no_grad():
            assert tiny(torch.rand(1, 3, *size)).shape == (1, 1000)
    with pytest.raises(ValueError, match="--image-size: stage 1 of the model needs sides of at least 29, got 28 64"):
        check_crops(tiny, (28, 64))
    with pytest.raises(ValueError, match="too small"):
        tiny(torch.rand(1, 3, 28, 64))
    with pytest.raises(ValueError, match="--image-size: the model reads 256 192, got 64 48"):
        check_crops(create_model("ppt_s", depth=1, pruning_layers=()), (64, 48))
