"""Files that are no weights, damaged, or of another model, given to every family: one line that names the file and the
reason."""

from __future__ import annotations

import json
import os

import pytest
import torch
from made_up.command import command
from safetensors.torch import save_file

from tore_fast.models import create_model, load, save

TINY = {
    "tcformer": (
        "tcformer_light",
        dict(
            embed_dims=(16, 32),
            num_heads=(1, 1),
            mlp_ratios=(2, 2),
            depths=(1, 1),
            sr_ratios=(8, 4),
            sample_ratios=(0.25,),
            num_classes=3,
        ),
    ),
    "hot": ("mixste_9", dict(frames=9, channels=32, depth=1, heads=4, mlp_hidden=48)),
    "hmr2": (
        "hmr2_vits",
        dict(embed_dim=64, depth=1, num_heads=1, decoder_depth=1, decoder_heads=1, decoder_mlp_dim=8, decoder_dim=16),
    ),
    "fastmetro": (
        "fastmetro_s_eb0",
        dict(backbone=None, feature_dim=8, dim_1=16, dim_2=8, feedforward_1=8, feedforward_2=8),
    ),
}
NO_WEIGHTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "a text file"),
    "page": (b"<!DOCTYPE html><html>quota exceeded \xc3\xa4</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "cut": (None, "damaged or cut off"),
}


def refusal(path, **given) -> str:
    with pytest.raises(ValueError) as e:
        load(path, **given)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{path}: "), e.value
    return str(e.value)


@pytest.mark.parametrize("upstream", [None, *TINY])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_no_weights(upstream, kind, suffix, tmp_path):
    content, reason = NO_WEIGHTS[kind]
    path = tmp_path / f"file.{suffix}"
    if content is None:
        tensors = {"a.weight": torch.zeros(300)}
        save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    assert f"not a readable weight file ({reason}" in refusal(path, upstream=upstream)


@pytest.mark.parametrize("upstream", TINY)
def test_a_tensor_too_many_too_few_or_of_another_shape(upstream, tmp_path):
    name, fields = TINY[upstream]
    state = {k: v.clone() for k, v in create_model(name, **fields).state_dict().items()}
    given = {"mesh": "free"} if upstream == "fastmetro" else {"num_heads": 1} if upstream == "hmr2" else {}
    last = list(state)[-1]
    first = next(k for k in state if state[k].dim() == 1 and k.endswith("bias"))
    path = tmp_path / "w.safetensors"
    cases = {
        f"1 keys unexpected, first: {last.rpartition('.')[0]}.spare": {
            **state,
            f"{last.rpartition('.')[0]}.spare": torch.ones(2),
        },
        f"1 keys missing, first: {first}": {k: v for k, v in state.items() if k != first},
        f"1 keys of another shape, first: {first} [{len(state[first]) + 1}]": {
            **state,
            first: torch.ones(len(state[first]) + 1),
        },
    }
    for said, tensors in cases.items():
        save_file(tensors, path)
        assert said in refusal(path, upstream=upstream, **given)


def test_our_folder_says_the_same(tmp_path):
    name, fields = TINY["hot"]
    model = create_model(name, **fields)
    save(model, tmp_path, name)
    weights = tmp_path / "model.safetensors"
    save_file({**model.state_dict(), "head.1.bias": torch.zeros(4)}, weights)
    with pytest.raises(
        ValueError, match=r"does not fit mixste_9: 1 keys of another shape, first: head.1.bias \[4\] \(expected \[3\]\)"
    ):
        load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable weight file \(damaged or cut off"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        load(tmp_path)


def test_a_damaged_file_is_one_line_of_the_command(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"\x09")
    assert command("convert", tmp_path / "cut.safetensors", tmp_path / "out") == 1
    assert (
        "Traceback" not in (said := capsys.readouterr().err) and "cut.safetensors: not a readable weight file" in said
    )
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="mixste_9 regresses no mesh, mesh_data cannot be given"):
        load(tmp_path / "a.bin", model="mixste_9", mesh_data=tmp_path)


def tiny_folder(tmp_path, change=None, **config):
    """A checkpoint folder of a tiny MixSTE; `change` gets its state dict, `config` replaces what config.json holds."""
    name, fields = TINY["hot"]
    model = create_model(name, **fields)
    save(model, tmp_path, name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if change is not None:
        save_file(change(state), tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return path


def test_weights_with_nan_or_of_another_kind(tmp_path):
    def spoil(state):
        state["head.1.bias"][0] = float("nan")
        state["head.1.weight"][0, 0] = float("inf")
        return state

    tiny_folder(tmp_path, spoil)
    with pytest.raises(ValueError, match="2 weights hold NaN or infinity, first: head.1"):
        load(tmp_path)
    assert load(tmp_path, allow_nonfinite=True)
    # finite in the file, infinite in the model
    tiny_folder(tmp_path, lambda state: {**state, "head.1.bias": torch.full((3,), 1e300, dtype=torch.float64)})
    with pytest.raises(ValueError, match="1 weights hold NaN or infinity, first: head.1.bias"):
        load(tmp_path)
    from tore_fast.cli._options import ModelArgs

    with pytest.raises(ValueError, match="--allow-nonfinite"):
        ModelArgs(model=str(tmp_path)).network()
    assert ModelArgs(model=str(tmp_path), allow_nonfinite=True).network()
    for dtype, said in ((torch.int64, "int64"), (torch.complex64, "complex64"), (torch.bool, "bool")):
        tiny_folder(tmp_path, lambda state, d=dtype: {**state, "head.1.bias": torch.ones(3).to(d)})
        with pytest.raises(
            ValueError, match=rf"1 weights of another kind, first: head.1.bias {said} \(expected float32"
        ):
            load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"frames": "many"}},
        {"config": {"frames": None}},
        {"config": {"frames": {}}},
        {"config": {"frames": [9]}},
        {"config": {"depth": -1}},
        {"config": {"channels": 0, "heads": 0}},
        {"config": {"frames": 10**30}},
        {"config": {"no_such_field": 1}},
        {"config": []},
        {"config": "x"},
        {"model": 3},
        {"model": "none_of_these"},
        {"model": "fastmetro_s_r50", "config": {"backbone": "hf-hub:somebody/model"}},
        {"model": "fastmetro_s_r50", "config": {"backbone": "../../file"}},
        {"model": "fastmetro_s_r50", "config": {"backbone": "no_such_backbone"}},
        {"model": "hmr2_vitt", "config": {"embed_dim": "wide"}},
    ],
)
def test_config_json_made_to_hurt(tmp_path, config):
    path = tiny_folder(tmp_path, **config)
    with pytest.raises(ValueError) as e:
        load(tmp_path)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value) and len(str(e.value)) < 500
    for text in ("", "[", "null", "[]", '{"model": 1}', "{" * 100_000, "\ufeff{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="config.json: "):
            load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="config.json: expected a config.json, got a pipe"):
        load(tmp_path)


def test_config_json_never_asks_for_pretrained_weights(tmp_path, monkeypatch):
    """`pretrained_backbone` of a folder's config is not believed: nothing is downloaded."""
    from tore_fast.models import _checkpoint

    tiny_folder(tmp_path, config={"pretrained_backbone": True})
    assert _checkpoint.read_config(tmp_path)["config"]["pretrained_backbone"] is False


def test_a_model_is_built_for_weights_whatever_the_memory_holds():
    """Truncated normal draws until its bounds are met; without drawing it must not wait for that."""
    from tore_fast.models._weights import NoInit

    with NoInit():
        w = torch.nn.init.trunc_normal_(torch.full((4, 4), 7.0), std=0.02)
        b = torch.full((4,), float("nan")).uniform_(-1.0, 3.0)
    assert float(w.abs().max()) == 0.0 and b.tolist() == [1.0] * 4
