"""Nouns as JSON and back."""

import dataclasses
import json
import math
import random
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evengrad.nouns import (
    Cure,
    Ends,
    Evidence,
    Finding,
    HeatMap,
    ParameterReading,
    Reading,
    Record,
    RunLogError,
    Setup,
    Story,
    Trial,
    Verdict,
    _json,
    from_json,
    to_json,
    to_plain,
)

KINDS = (Finding, Story, Trial, Verdict, Record, Reading, HeatMap, Cure, Setup, Ends, ParameterReading)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def nouns(kind: Any) -> st.SearchStrategy[Any]:
    """Build a strategy for a noun from its type hints."""
    if dataclasses.is_dataclass(kind):
        return st.builds(kind, **{name: nouns(hint) for name, hint in get_type_hints(kind).items()})
    args = get_args(kind)
    if get_origin(kind) is tuple:
        return st.lists(nouns(args[0]), max_size=2).map(tuple) if args[-1] is ... else st.tuples(*map(nouns, args))
    if get_origin(kind) is Literal:
        return st.sampled_from(args)
    if get_origin(kind) in {Union, UnionType}:
        return st.one_of(map(nouns, args))
    plain = {str: TEXTS, float: st.floats(), int: st.integers(), bool: st.booleans(), type(None): st.none()}
    return plain[kind]


def alike(a: Any, b: Any) -> bool:
    """Compare with NaN equal to NaN, and with the types of numbers."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(alike(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", [Finding, Story, Trial, Record, Verdict])
def test_a_noun_reads_back_as_it_was_written(kind, data):
    noun = data.draw(nouns(kind).filter(settings_are_finite))
    text = to_json(noun)
    assert "\n" not in text
    assert alike(from_json(kind, text, where="here"), noun)


def settings_are_finite(noun: Any) -> bool:
    findings = [noun] if isinstance(noun, Finding) else getattr(noun, "findings", ()) if isinstance(noun, Story) else ()
    values = [value for finding in findings for cure in finding.cures for _, value in cure.settings]
    return all(not isinstance(value, float) or math.isfinite(value) for value in values)


def test_a_non_finite_setting_comes_back_as_its_name():
    cure = Cure(treatment="ClipGradients", settings=(("max_norm", math.inf),))
    assert from_json(Cure, to_json(cure), where="here").settings == (("max_norm", "inf"),)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_strict_json(value):
    text = to_json(Evidence(name="loss", value=value))
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    back = from_json(Evidence, text, where="here").value
    assert isinstance(back, float)
    assert repr(back) == repr(value)


def test_the_type_of_a_setting_is_kept():
    values = (True, 1, 1.0, 0, 0.0, False, None, "1", "nan", "")
    cure = Cure(treatment="T", settings=tuple((str(i), value) for i, value in enumerate(values)))
    back = tuple(value for _, value in from_json(Cure, to_json(cure), where="here").settings)
    assert [(type(value), value) for value in back] == [(type(value), value) for value in values]


def test_keys_that_are_not_known_are_ignored():
    plain = to_plain(Evidence(name="loss", value=1.0)) | {"colour": "red", "added_later": {"deep": [1]}}
    assert from_json(Evidence, json.dumps(plain), where="here") == Evidence(name="loss", value=1.0)


def test_keys_that_are_not_there_get_their_defaults():
    assert from_json(Reading, "{}", where="here") == Reading()


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (Evidence, "", "JSONDecodeError"),
        (Evidence, "{", "JSONDecodeError"),
        (Evidence, "[]", "Evidence from list"),
        (Evidence, "null", "Evidence from NoneType"),
        (Evidence, '{"name": "loss"}', "missing 1 required"),
        (Evidence, '{"name": 3, "value": 1}', "str from int"),
        (Evidence, '{"name": null, "value": 1}', "str from NoneType"),
        (Evidence, '{"name": "loss", "value": true}', "float from bool"),
        (Evidence, '{"name": "loss", "value": "much"}', "could not convert"),
        (Evidence, '{"name": "loss", "value": [1]}', "float from list"),
        (Reading, '{"step": 1.5}', "int from float"),
        (Reading, '{"step": true}', "int from bool"),
        (Reading, '{"step": "1"}', "int from str"),
        (Reading, '{"skipped": 1}', "bool from int"),
        (Reading, '{"loss": [1]}', "list is none of"),
        (Reading, '{"lrs": 1.0}', "tuple from float"),
        (Reading, '{"lrs": {"0": 1.0}}', "tuple from dict"),
        (Reading, '{"layers": [3]}', "LayerReading from int"),
        (Finding, '{"code": "EG1", "symptom": "s", "severity": "grave", "where": []}', "'grave' is none of"),
        (Finding, '{"code": "EG1", "symptom": "s", "severity": [], "where": []}', "is none of"),
        (
            Finding,
            '{"code": "EG1", "symptom": "s", "severity": "warning", "where": [], "when": [0]}',
            "1 items, want 2",
        ),
        (Cure, '{"treatment": "T", "settings": [["a", {}]]}', "dict is none of"),
    ],
)
def test_what_is_no_such_noun_is_refused(kind, text, why):
    with pytest.raises(RunLogError, match=why) as caught:
        from_json(kind, text, where="runs/a/story.json")
    assert caught.value.what == "runs/a/story.json"
    assert kind.__name__ in caught.value.wanted
    assert caught.value.__cause__ is not None


def test_a_text_is_read_up_to_its_limit_and_no_longer():
    longest = "x" * _json.LONGEST_TEXT
    assert from_json(Evidence, to_json(Evidence(name=longest, value=0.0)), where="here").name == longest
    with pytest.raises(RunLogError, match=f"a text of {_json.LONGEST_TEXT + 1} characters"):
        from_json(Evidence, to_json(Evidence(name=longest + "x", value=0.0)), where="here")


def test_a_document_is_read_up_to_its_limit_and_no_longer(monkeypatch):
    text = to_json(Evidence(name="loss", value=0.0))
    monkeypatch.setattr(_json, "LONGEST_JSON", len(text))
    assert from_json(Evidence, text, where="here").name == "loss"
    with pytest.raises(RunLogError, match=f"{len(text) + 1} characters, more than {len(text)}"):
        from_json(Evidence, text + " ", where="here")


def test_deep_nesting_and_huge_numbers_are_refused_and_not_a_crash():
    with pytest.raises(RunLogError, match=r"RecursionError|from list"):
        from_json(Evidence, '{"name": ' + "[" * 100_000 + "]" * 100_000 + ', "value": 1}', where="here")
    with pytest.raises(RunLogError, match="digits"):
        from_json(Reading, '{"step": ' + "9" * 10_000 + "}", where="here")
    with pytest.raises(RunLogError, match="too large"):
        from_json(Evidence, '{"name": "loss", "value": ' + "9" * 400 + "}", where="here")


def test_no_damage_to_a_text_gives_another_error():
    source = random.Random(0)
    text = to_json(Trial(label="a", seed=1, steps=2, stage="scout", losses=(1.0, math.nan), symptoms=(("EG101", 3.0),)))
    refused = 0
    for _ in range(2000):
        at = source.randrange(len(text))
        damaged = (
            text[:at] + source.choice(["", "\0", '"', "{", "]", "9", "e", "null"]) + text[at + source.randrange(4) :]
        )
        try:
            assert isinstance(from_json(Trial, damaged, where="here"), Trial)
        except RunLogError:
            refused += 1
    assert refused > 1000
