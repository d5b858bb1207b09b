"""Weights and inputs of golden cases, rebuilt from names: a case ships only names, shapes and outputs.

`evaluate` reads the small expression language of the cases' `recipe` fields (`0.5*tensor('input.x', shape)`,
`(...).astype(np.float32)`, slices of `np.arange`); prose recipes are left to the family that owns them.
"""

from __future__ import annotations

import ast
import operator
import zlib

import numpy as np


class NotAnExpression(ValueError):
    """The recipe is prose, not an expression."""


def tensor(name: str, shape) -> np.ndarray:
    """Standard-normal float32 array fixed by `name` (its CRC32 is the seed) and `shape`."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return rng.standard_normal(int(np.prod(shape, dtype=np.int64))).astype(np.float32).reshape(tuple(shape))


def weight(name: str, shape) -> np.ndarray:
    """Plausible parameter or buffer for the state-dict key `name`."""
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = tensor(name, shape)
    if name.endswith("running_var"):
        value = 1.0 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.float32(np.prod(shape[1:], dtype=np.int64)))
    elif name.endswith(("weight", "gamma")):
        value = 1.0 + 0.1 * noise
    else:
        value = 0.1 * noise
    return np.asarray(value, np.float32)


_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_NUMPY = {"float32", "float64", "int64", "arange", "abs", "sqrt", "exp", "cumsum", "repeat", "concatenate"}


def evaluate(recipe: str, shape=None, names: dict[str, object] | None = None) -> np.ndarray:
    """Value of a recipe expression; `names` holds other inputs it may refer to."""
    try:
        tree = ast.parse(recipe, mode="eval")
    except SyntaxError as e:
        raise NotAnExpression(recipe) from e
    scope = {"tensor": tensor, "abs": np.abs, "shape": shape, "cumsum": np.cumsum, **(names or {})}
    return _value(tree.body, scope)


def _value(node: ast.AST, scope: dict[str, object]):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_value(e, scope) for e in node.elts)
    if isinstance(node, ast.Name) and node.id in scope:
        return scope[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, scope), _value(node.right, scope))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, scope)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "np" and node.attr in _NUMPY:
            return getattr(np, node.attr)
        if node.attr in ("astype", "reshape", "T"):
            return getattr(_value(node.value, scope), node.attr)
    if isinstance(node, ast.Call):
        keywords = {k.arg: _value(k.value, scope) for k in node.keywords}
        return _value(node.func, scope)(*(_value(a, scope) for a in node.args), **keywords)
    if isinstance(node, ast.Subscript):
        return _value(node.value, scope)[_value(node.slice, scope)]
    if isinstance(node, ast.Slice):
        return slice(*(None if p is None else _value(p, scope) for p in (node.lower, node.upper, node.step)))
    raise NotAnExpression(ast.unparse(node))
