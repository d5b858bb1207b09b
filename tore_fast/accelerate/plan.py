"""A plan: what was chosen for one kind of model, as a JSON file that another copy of it can load.

In: settings and the fingerprint of the model; out: plan.json. Loading on a model with another fingerprint is refused.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..io.atomic import write_json
from ..version import __version__

MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Plan:
    """Settings of `accelerate`; `groups` are merged layers, `measured` what compare() and benchmark() found."""

    fingerprint: dict[str, Any]
    keep_tokens: int | float | None = None
    keep_hand_tokens: int | float | None = None
    per_block: int | None = None
    groups: tuple[tuple[int, ...], ...] | None = None
    layerscale: str = "fold"
    unmerge: str = "copy"
    prop_attn: bool = True
    masks: str = "auto"
    attention: str = "keep"
    measured: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        write_json(path, {"tore_fast": __version__, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads plan.json.

        Raises:
            ValueError: not a plan, or fields of the wrong type.
        """
        try:
            if Path(path).stat().st_size > MAX_BYTES:
                raise ValueError("too large for a plan")
            data = json.loads(Path(path).read_text())
            data.pop("tore_fast")
            groups = data.pop("groups", None)
            plan = cls(**data, groups=None if groups is None else tuple(tuple(int(i) for i in g) for g in groups))
            for name in ("keep_tokens", "keep_hand_tokens", "per_block"):
                value = getattr(plan, name)
                if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise ValueError(f"{name} must be a number, got {value!r}")
            if not isinstance(plan.fingerprint, dict):
                raise ValueError("fingerprint must be an object")
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"{path}: not a plan of tore_fast.accelerate ({e})") from e
        return plan

    def check(self, found: dict[str, Any], path: str | Path) -> None:
        """Raises ValueError if the model's fingerprint is another one."""
        if found != self.fingerprint:
            raise ValueError(f"{path}: made for {self.fingerprint}, this model is {found}")
