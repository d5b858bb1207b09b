"""Options that mean the same in every verb, written once: the model, how it runs, where results go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import arguments, print_error


@dataclass(kw_only=True)
class ModelArgs:
    """Which network."""

    model: str = "default"
    """`default` (built in), a registered name (tore-fast list), or a checkpoint folder."""
    checkpoint: Path | None = None
    """Weights: a folder of ours, or an official file (of the model that --model names, else told by its keys)."""
    set: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs, e.g. --set keep_tokens 90 prop_attn false."""
    mesh_data: Path | None = None
    """Folder with the SMPL/MANO topology files, for models of those meshes (else $TORE_FAST_MESH_DATA)."""
    allow_nonfinite: bool = False
    """Load weights that hold NaN or infinity, which are refused otherwise; results can be NaN then."""

    def config_fields(self) -> dict[str, Any]:
        """`--set` as values for the config of the chosen model, and --allow-nonfinite where it was given.

        Raises:
            ValueError: an unknown field, or a value of another type than the field's.
        """
        load = {"allow_nonfinite": True} if self.allow_nonfinite else {}
        if not self.set:
            return load
        from ..models._overrides import config_type, parse_overrides

        return load | parse_overrides(config_type(self.registered_name()), self.set)

    def registered_name(self) -> str:
        """Registered name behind --model and --checkpoint."""
        from ..models._checkpoint import registered_name

        name = registered_name(self.checkpoint or self.model)
        if name is None and self.model == "default":
            raise ValueError("--set: name the model of an official file with --model, so that its fields are known")
        return name or self.model

    def network(self) -> Any:
        """The model that --model, --checkpoint, --set and --mesh-data mean."""
        from ..models import load

        return load(
            self.checkpoint or self.model, model=self.model or None, mesh_data=self.mesh_data, **self.config_fields()
        )

    def is_random(self) -> bool:
        """Whether the weights are random: a registered name without a checkpoint."""
        from ..models.default import BUILT_IN

        return self.checkpoint is None and self.model not in BUILT_IN and not Path(self.model).exists()

    def note_random(self, what: str) -> None:
        """One line on stderr where `what` means nothing because the weights are random."""
        if self.is_random():
            print(
                f"note: {self.model} without --checkpoint has random weights: the {what} mean nothing", file=sys.stderr
            )


@dataclass(kw_only=True)
class RunArgs:
    """How it runs."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, xpu."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the networks' matrix products; results stay float32."""
    batch_size: int = 8
    """Items run at once."""
    limit: int | None = None
    """Stop after this many items of an input (images, frames, crops)."""
    seed: int = 0
    """Of everything random."""
    quiet: bool = False
    """No progress bars."""

    def check_limit(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: expected at least 1, got {self.limit}")

    def progress(self, total: int | None, unit: str, desc: str = "") -> Any:
        """A progress bar; silent without a terminal or with --quiet."""
        from tqdm import tqdm

        quiet = self.quiet or not sys.stderr.isatty()
        return tqdm(total=total, unit=unit, desc=desc or None, disable=quiet, dynamic_ncols=True)


@dataclass(kw_only=True)
class OutArgs:
    """Where results go."""

    out: Path = Path("out")
    """Folder for the results."""
    json: bool = False
    """Print the summary as JSON."""

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Makes --out, and removes what it made if nothing came into it."""
        made = [p for p in (self.out, *self.out.parents) if not p.exists()]
        with arguments("--out: expected a folder that can be written"):
            self.out.mkdir(parents=True, exist_ok=True)
        try:
            yield self.out
        finally:
            with suppress(OSError):  # not empty: results are there
                for p in made:
                    p.rmdir()

    def say(self, facts: dict[str, Any], text: Callable[[], str] | str) -> None:
        """The summary on stdout: `text`, or `facts` as JSON."""
        import json

        print(json.dumps(facts, indent=2) if self.json else text() if callable(text) else text)


def report_failures(failed: int, inputs: int) -> int:
    """The last line and the exit code of a verb that went through many inputs."""
    from . import FAILED

    if failed:
        print_error(f"{failed} of {inputs} inputs failed (see above)")
    return FAILED if failed else 0
