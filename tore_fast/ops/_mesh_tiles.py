"""Attention pattern of a mesh in the form that the matrix units want: tiles of at most 16 rows and 64 columns.

A 16 x 16 product costs the same however few of its pairs are open, so rows that share many columns go into one tile and
only the union of their columns is multiplied. csrc/cuda/mesh_attention_mma.cuh reads the table.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

ROWS, COLUMNS, WIDTH = 16, 64, 128
MAX_TOKENS = 4096  # what a block keeps in shared memory ends well below


def mesh_tiles(pattern: sp.csr_matrix, joints: int) -> Tensor | None:
    """Table [tiles, 128] int32 for the rows of a square pattern [V, V]; None where a row does not fit 64 columns.

    An entry of the table:
        0..15: row tokens (joints + vertex), -1: no row. 16..79: column tokens, joints among them. 112: columns in use,
        a multiple of 16; further ones, and those that fill up, repeat a column of the tile that the mask closes.
        80..111: mask words, one per lane of a warp; bit 4 n + e opens row lane / 4 + 8 (e / 2) to column
        8 n + 2 (lane % 4) + e % 2, which is where mma.m16n8k16 puts that score.
    """
    vertices = pattern.shape[0]
    counts = np.diff(pattern.indptr)
    if vertices == 0 or joints + vertices > MAX_TOKENS or joints + counts.max() > COLUMNS:
        return None
    neighbours = [frozenset(row.tolist()) for row in np.split(pattern.indices, pattern.indptr[1:-1])]
    tiles = [_tile(rows, neighbours, joints) for rows in _pack(neighbours, COLUMNS - joints)]
    return torch.from_numpy(np.stack(tiles))


def _pack(neighbours: list[frozenset[int]], room: int) -> list[list[int]]:
    """Rows in groups of up to 16 that see up to `room` columns: always the next row that adds the fewest."""
    seen_by: list[list[int]] = [[] for _ in neighbours]  # rows that see a column
    for row, columns in enumerate(neighbours):
        for c in columns:
            seen_by[c].append(row)
    free = set(range(len(neighbours)))
    groups: list[list[int]] = []
    border: set[int] = set()  # free rows beside what is packed: a group starts there, not in the middle of what is left
    while free:
        start = min(border or free, key=lambda r: (sum(c in free for c in neighbours[r]), r))
        group, union = [start], set(neighbours[start])
        free.remove(start)
        near = {r for c in union for r in seen_by[c]} & free
        while len(group) < ROWS:
            fitting = [r for r in near or free if len(union | neighbours[r]) <= room]
            if not fitting:
                break
            # few new columns; among equals a row whose neighbours are mostly packed, which would be left over
            best = min(fitting, key=lambda r: (len(neighbours[r] - union), sum(c in free for c in neighbours[r]), r))
            group.append(best)
            free.remove(best)
            union |= neighbours[best]
            near = (near | {r for c in neighbours[best] for r in seen_by[c]}) & free
        groups.append(group)
        border = (border | near) & free
    return groups


def _tile(rows: list[int], neighbours: list[frozenset[int]], joints: int) -> np.ndarray:
    union = sorted(frozenset().union(*(neighbours[r] for r in rows)))
    columns = _spread([*range(joints), *(joints + c for c in union)])
    open_ = np.zeros((ROWS, COLUMNS), np.int64)
    for i, r in enumerate(rows):
        sees = {joints + c for c in neighbours[r]}
        open_[i, : len(columns)] = [c < joints or c in sees for c in columns]
    used = -(-len(columns) // 16) * 16
    lane, n, e = np.meshgrid(np.arange(32), np.arange(8), np.arange(4), indexing="ij")
    bits = open_[lane // 4 + 8 * (e // 2), 8 * n + 2 * (lane % 4) + e % 2] << (4 * n + e)
    entry = np.zeros(WIDTH, np.int32)
    entry[:ROWS] = -1
    entry[: len(rows)] = np.array(rows) + joints
    fill = columns[0] if columns else 0  # a row without keys
    entry[16:80] = columns + [fill] * (COLUMNS - len(columns))
    entry[80:112] = bits.sum((1, 2)).astype(np.uint32).view(np.int32)
    entry[112] = used
    return entry


def _spread(columns: list[int]) -> list[int]:
    """Columns in an order in which eight in turn differ modulo 8 as far as possible: their rows lie in different
    banks."""
    residues: list[list[int]] = [[c for c in columns if c % 8 == r] for r in range(8)]
    order: list[int] = []
    while len(order) < len(columns):
        taken = sorted((b for b in residues if b), key=len, reverse=True)[: len(columns) - len(order)]
        order += [bucket.pop(0) for bucket in taken]
        short = 8 - len(taken)  # fewer residues than columns of a matrix: some twice
        for _ in range(min(short, len(columns) - len(order))):
            order.append(max(residues, key=len).pop(0))
    return order
