"""`--set NAME VALUE`: typed by the config, unknown and mistyped values refused by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_type_hints

import pytest

from tore_fast.models import create_model
from tore_fast.models._overrides import config_type, parse_overrides, parse_value


@dataclass(frozen=True)
class Config:
    depth: int = 12
    qkv_bias: bool = True
    rate: float = 0.1
    size: tuple[int, int] = (256, 192)
    ratios: tuple[float, ...] = (1.0,)
    nested: tuple[tuple[int, ...], ...] = ()
    keep: int | None = None
    stem: str = "patch"
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    "name,text,value",
    [
        *(("qkv_bias", t, False) for t in ("false", "False", "FALSE")),
        *(("qkv_bias", t, True) for t in ("true", "True")),
        ("depth", "3", 3),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("size", "64,48", (64, 48)),
        ("size", "(64, 48)", (64, 48)),
        ("ratios", "0.5", (0.5,)),
        ("ratios", "[1, 2.5,]", (1.0, 2.5)),
        ("nested", "((1,2),(3,))", ((1, 2), (3,))),
        ("keep", "none", None),
        ("keep", "90", 90),
        ("stem", "none", "none"),
        ("kind", "b", "b"),
    ],
)
def test_values_have_the_type_of_their_field(name, text, value):
    got = parse_overrides(Config, {name: text})[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "name,text,words",
    [
        ("qkv_bias", "no", "--set qkv_bias: expected true or false, got 'no'"),
        ("qkv_bias", "1", "--set qkv_bias: expected true or false, got '1'"),
        ("depth", "3.5", "--set depth: expected a whole number, got '3.5'"),
        ("depth", "true", "--set depth: expected a whole number, got 'true'"),
        ("rate", "nan", "--set rate: expected a number"),
        ("size", "64", "--set size: expected 2 values, as 1,2, got '64'"),
        ("ratios", "a,b", "--set ratios: expected a list of numbers"),
        ("keep", "many", "--set keep: expected a whole number or none, got 'many'"),
        ("kind", "c", "--set kind: expected one of a, b, got 'c'"),
        ("dept", "3", "--set dept: Config has no such field; did you mean depth"),
        ("xyzzy", "3", "--set xyzzy: Config has no such field; expected one of depth, qkv_bias"),
    ],
)
def test_wrong_ones_are_refused_by_name(name, text, words):
    with pytest.raises(ValueError) as e:
        parse_overrides(Config, {name: text})
    assert words in str(e.value)


def test_false_builds_a_model_without_the_bias():
    values = parse_overrides(config_type("tcformer_light"), {"qkv_bias": "false"})
    assert values == {"qkv_bias": False}
    assert create_model("tcformer_light", **values).config.qkv_bias is False


@pytest.mark.parametrize(
    "name",
    [
        "fastmetro_tore_s_eb0",
        "metro_r50",
        "tcformer_light_wholebody",
        "tcformer_light_hmr",
        "hmr2_vitt",
        "hot_mixste_27",
    ],
)
def test_every_field_of_a_config_can_be_given_as_text(name):
    """A field whose type the parser does not know could never be set."""
    kind = config_type(name)
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(field.default):
            assert parse_value(str(field.default), types[field.name]) == field.default, (kind, field.name)
