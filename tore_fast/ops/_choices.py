"""What `impl="auto"` takes on CUDA where several ways are right: a table by op, shape class and architecture.

In: ops/assets/cuda_choices.json, and before it the file that $TORE_FAST_CHOICES names, as `tore-fast bench ops
--write-choices FILE` measures it on the user's own GPU. Out: `preferred(...)`, the name of a way, or None where the
table says nothing. Every rule says whether it was measured or estimated, and from what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHIPPED = Path(__file__).parent / "assets" / "cuda_choices.json"
SOURCES = ("measured", "estimate")
RANGES = ("dim", "keys", "queries", "items")  # head dimension, tokens, tokens, batch x heads: [first, last or null]
FLAGS = ("bias", "grad")  # there is a bias per key; a backward follows


class Rule(NamedTuple):
    """A class of calls and what they take; None: any."""

    op: str
    take: str
    source: str
    why: str
    arch: str | None = None  # "sm_90"
    bits: int | None = None  # 16 or 32
    bias: bool | None = None
    grad: bool | None = None
    dim: tuple[int, int] | None = None
    keys: tuple[int, int] | None = None
    queries: tuple[int, int] | None = None
    items: tuple[int, int] | None = None

    def fits(self, op: str, call: dict[str, Any]) -> bool:
        if op != self.op:
            return False
        for name in ("arch", "bits", *FLAGS):
            want = getattr(self, name)
            if want is not None and want != call[name]:
                return False
        for name in RANGES:
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] <= call[name] <= bounds[1]:
                return False
        return True


def read(path: Path) -> tuple[Rule, ...]:
    """Rules of a file.

    Raises:
        ValueError: the file is no table of choices; the message names it and the rule.
    """
    try:
        rules = json.loads(path.read_text())["rules"]
        return tuple(_rule(entry, f"{path}: rule {i}") for i, entry in enumerate(rules))
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: expected a table of choices (tore-fast bench ops --write-choices): {e}") from None


def _rule(entry: dict[str, Any], where: str) -> Rule:
    unknown = sorted(set(entry) - set(Rule._fields))
    missing = sorted({"op", "take", "source", "why"} - set(entry))
    if unknown or missing or entry["source"] not in SOURCES:
        raise ValueError(f"{where}: unknown {unknown}, missing {missing}, source one of {SOURCES}")
    values = dict(entry)
    for name in RANGES:
        if values.get(name) is not None:
            first, last = values[name]
            values[name] = (int(first), 2**62 if last is None else int(last))
    return Rule(**values)


def _load() -> tuple[Rule, ...]:
    own = os.environ.get("TORE_FAST_CHOICES")
    return (read(Path(own)) if own else ()) + read(SHIPPED)


RULES = _load()


def device_arch(device: torch.device) -> str:
    """ "sm_90"; "" where there is no GPU to ask (fake tensors)."""
    if not torch.cuda.is_available():
        return ""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def call_class(q: Tensor, keys: int, arch: str, bias: bool = False, grad: bool = False) -> dict[str, Any]:
    """The class of an attention call with queries q [B, H, N, D]."""
    return {
        "arch": arch,
        "bits": 8 * q.element_size(),
        "bias": bias,
        "grad": grad,
        "dim": q.shape[-1],
        "keys": keys,
        "queries": q.shape[-2],
        "items": q.shape[0] * q.shape[1],
    }


def preferred(op: str, call: dict[str, Any], rules: Iterable[Rule] | None = None) -> Rule | None:
    """The first rule that fits, or None."""
    return next((rule for rule in (RULES if rules is None else rules) if rule.fits(op, call)), None)


def measured(results: Iterable[dict[str, Any]], arch: str) -> list[dict[str, Any]]:
    """Rules from the rows of `tore-fast bench ops` on CUDA: in every class the way with the smallest median.

    A class reaches from half of the measured sizes to the sizes themselves, as the benchmarks' sizes go.
    """
    rules = []
    for row in results:
        ways = {
            c["params"]["way"]: c["median_ms"]
            for c in row["contenders"]
            if c.get("params", {}).get("way") and "median_ms" in c
        }
        if row["device"] != "cuda" or len(ways) < 2:
            continue
        take = min(ways, key=lambda way: ways[way])
        others = ", ".join(f"{way} {ms:.4g} ms" for way, ms in sorted(ways.items(), key=lambda w: w[1]))
        size = row["params"]
        rules.append(
            {
                "op": row["op"],
                "take": take,
                "source": "measured",
                "why": f"{row['case']}, {row['direction']}: {others}",
                "arch": arch,
                "bits": 32 if row["dtype"] == "float32" else 16,
                "bias": size["bias"],
                "grad": row["direction"] != "fwd",
                "dim": [size["dim"], size["dim"]],
                **{name: [size[name] // 2 + 1, size[name]] for name in ("keys", "queries", "items")},
            }
        )
    return rules
