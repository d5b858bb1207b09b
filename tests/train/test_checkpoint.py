"""Files of a training run: damage is one line, the checkpoint before is kept and offered."""

from __future__ import annotations

import pytest
import torch

from tore_fast.train.checkpoint import keep_previous, previous, read_run, save_atomically


def state(step: int) -> dict:
    return {"model": {"w": torch.full((50,), float(step))}, "step": step, "best": 1.0}


def test_the_checkpoint_before_is_kept_and_offered(tmp_path):
    last = tmp_path / "last.pt"
    for step in (10, 20):
        keep_previous(last)
        save_atomically(state(step), last)
    assert read_run(last)["step"] == 20 and read_run(previous(last))["step"] == 10
    last.write_bytes(last.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"last.pt: not a readable weight file .*step 10\): mv .*previous_last.pt"):
        read_run(last)
    previous(last).write_bytes(b"")
    with pytest.raises(ValueError, match="last.pt: not a readable weight file") as e:
        read_run(last)
    assert "previous" not in str(e.value)


@pytest.mark.parametrize(
    "content", [[1], {"model": {}}, {"step": 3}, {"model": 3, "step": 1}, {"model": {}, "step": "x"}]
)
def test_another_file_is_named(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="last.pt: not a checkpoint of a training run"):
        read_run(tmp_path / "last.pt")
