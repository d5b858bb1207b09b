"""Names of results: no two share a file, whatever the inputs are called; the index says whose they are."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest

from tore_fast.io.atomic import replacing
from tore_fast.pipelines.names import output_names, read_index, write_index


def files(name: str, people: int = 3) -> set[str]:
    """Everything that may be written for one input, as a file system that ignores case sees it."""
    made = {f"{name}.npz", f"{name}.glb", f"{name}_overlay.png", *(f"{name}_{i}.glb" for i in range(people))}
    return {f.casefold() for f in made}


@pytest.mark.parametrize(
    "sources,names",
    [
        (["a.jpg", "a_2.jpg", "a.png"], ["a", "a_2_jpg", "a_png"]),
        (["a/x.jpg", "b/x.jpg", "x_2.jpg"], ["x", "x_jpg", "x_2_jpg"]),
        (["img.jpg", "img_1.jpg"], ["img", "img_1_jpg"]),
        (["img_1.jpg", "img.jpg"], ["img_1", "img_jpg"]),
        (["a.jpg", "A.JPG"], ["a", "A_JPG"]),
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a/x.jpg", "b/x.jpg", "c/x.jpg"], ["x", "x_jpg", "x_jpg_no2"]),
    ],
)
def test_names(sources, names, tmp_path):
    assert output_names(sources, tmp_path) == names


def test_no_two_inputs_share_a_file(tmp_path):
    rng = random.Random(0)
    stems = ["a", "A", "a_1", "a_2", "a_1_2", "a_jpg", "a_overlay", "a_jpg_no2", "b_0", "b"]
    for _ in range(300):
        sources = {f"{rng.choice('xyz')}/{rng.choice(stems)}.{rng.choice(['jpg', 'png'])}" for _ in range(8)}
        names = output_names(sorted(sources), tmp_path)
        for one, other in itertools.combinations(names, 2):
            assert not files(one) & files(other), (sorted(sources), names)


def test_a_folder_of_earlier_results(tmp_path):
    """A source keeps its name, another one does not get it."""
    (first,) = output_names(["a/x.jpg"], tmp_path)
    write_index(tmp_path, [{"name": first, "source": "a/x.jpg", "files": ["x.npz"]}])
    assert output_names(["b/x.jpg", "a/x.jpg"], tmp_path) == ["x_jpg", "x"]
    write_index(tmp_path, [{"name": "x_jpg", "source": "b/x.jpg", "files": []}], {"verb": "predict"})
    assert {e["name"]: e["source"] for e in read_index(tmp_path)} == {
        "x": os.path.abspath("a/x.jpg"),
        "x_jpg": os.path.abspath("b/x.jpg"),
    }
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="results.json: expected the index"):
        output_names(["a.jpg"], tmp_path)


def test_inputs_in_the_folder_of_the_results_stay(tmp_path):
    inputs = [tmp_path / "walk.npz", tmp_path / "clip"]
    assert output_names(inputs, tmp_path, (".npz", ".bvh")) == ["walk_npz", "clip_2"]


def test_long_names_and_names_that_are_not_utf8(tmp_path):
    odd = Path(os.fsdecode(b"caf\xe9.jpg"))
    names = output_names([odd, "n" * 250 + ".jpg"], tmp_path)
    assert os.fsencode(names[0]) == b"caf\xe9" and len(names[1]) == 180
    write_index(tmp_path, [{"name": names[0], "source": str(odd), "files": []}])
    assert read_index(tmp_path)[0]["name"] == names[0]
    json.loads((tmp_path / "results.json").read_bytes().decode("ascii"))


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with replacing(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"none.x\.txt"), replacing(tmp_path / "none" / "x.txt") as part:
        part.write_text("")
