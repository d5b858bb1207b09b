"""Launch sizes of the Triton kernels: plain tables, no autotuning (a fixed launch is reproducible and compiles
offline).

Not tuned on a GPU yet: chosen by tile arithmetic (registers, shared memory, wasted rows), see
tests/build/test_triton_build.py for what every entry costs on sm_90.
"""

from __future__ import annotations

from typing import NamedTuple


class AttentionConfig(NamedTuple):
    block_m: int  # query rows per tile
    block_n: int  # keys per tile
    warps: int
    stages: int


def next_power_of_2(n: int, least: int = 16, most: int = 1 << 30) -> int:
    return min(most, max(least, 1 << max(n - 1, 0).bit_length()))


# widest head dimension -> (largest block_m, largest block_n) of forward and backward
_FWD = ((32, 128, 64), (64, 128, 64), (128, 64, 64), (256, 32, 32))
_BWD = ((32, 64, 64), (64, 32, 64), (128, 32, 64), (256, 16, 32))


def _pick(table, queries: int, keys: int, block_d: int, four_byte: bool) -> AttentionConfig:
    _, most_m, most_n = next(row for row in table if block_d <= row[0])
    if four_byte:  # twice the registers and shared memory per tile
        most_m, most_n = max(16, most_m // 2), max(16, most_n // 2)
    block_m, block_n = next_power_of_2(queries, 16, most_m), next_power_of_2(keys, 16, most_n)
    wide = 32 * 128 if four_byte else 128 * 64  # tiles that spill with 4 warps
    warps = 8 if block_m * block_d >= wide else 4 if block_m * max(block_n, block_d) >= 32 * 32 else 2
    return AttentionConfig(block_m, block_n, warps, 2 if keys > block_n and not four_byte else 1)


def pruned_attention_fwd(queries: int, keys: int, block_d: int, four_byte: bool) -> AttentionConfig:
    return _pick(_FWD, queries, keys, block_d, four_byte)


def pruned_attention_bwd(queries: int, keys: int, block_d: int, four_byte: bool) -> AttentionConfig:
    return _pick(_BWD, queries, keys, block_d, four_byte)._replace(stages=1)
