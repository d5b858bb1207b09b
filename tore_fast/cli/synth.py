"""`tore-fast synth [JOB]`: synthetic data on disk, one module synth_JOB.py per kind; without a JOB images."""

from __future__ import annotations

SUBCOMMANDS = {
    "images": "images of the free body with labels, as npz shards",
    "clips": "motion files rendered as clips of a person, with a regressor's features: data of `train motion`",
}


def default_job(argv: list[str]) -> str:
    """The job of `tore-fast synth --out ...`."""
    return "images"
