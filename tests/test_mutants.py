"""The mutation gate, a tenth of it and what it once let through: small changes of right answers lose points."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from course_lib.checks.expect import expectation
from course_lib.checks.piece import find
from tests.mutants import all_mutants, equivalent, is_killed, mutations, past_survivors

MUTANTS = {mutant.title: mutant for mutant in all_mutants()}
STILL_RIGHT = equivalent()
SAMPLE = random.Random(20261120).sample(sorted(set(MUTANTS) - set(STILL_RIGHT)), len(MUTANTS) // 10)


def changed(source):
    """{name: the one line that `def f(x): …` consists of, changed}."""
    return {name: text().splitlines()[-1].strip() for name, text in mutations(f"def f(x):\n    {source}\n")}


@pytest.mark.parametrize(
    ("source", "name", "becomes"),
    [
        ("return x + y", "x + y → x - y #1", "return x - y"),
        ("return x / y", "x / y → x * y #1", "return x * y"),
        ("return x < y", "x < y → x <= y #1", "return x <= y"),
        ("return x is None", "x is None → x is not None #1", "return x is not None"),
        ("return x and y", "x and y → x or y #1", "return x or y"),
        ("return not x", "not x → bool(x) #1", "return bool(x)"),
        ("return -x", "-x → +x #1", "return +x"),
        ("return 2", "2 → 1 #1", "return 1"),
        ("return 0.5", "0.5 → 1.0 #1", "return 1.0"),
        ("return True", "True → False #1", "return False"),
        ("return g(x, y)", "g(x, y) → g(y, x) #1", "return g(y, x)"),
        ("return g(x, keepdim=y)", "g(x, keepdim=y) → g(x) #1", "return g(x)"),
        ("x += y", "x += y → x -= y #1", "x -= y"),
        ("x += y", "x += y → pass #1", "pass"),
    ],
)
def test_a_mutant_has_one_thing_changed(source, name, becomes):
    assert changed(source)[name] == becomes


def test_equal_changes_are_numbered():
    assert {"x + 1 → x - 1 #1", "x + 1 → x - 1 #2"} <= set(changed("return (x + 1) * (x + 1)"))


@pytest.mark.parametrize("source", ['"""Text."""', "raise ValueError(f'{1 + 2} too many')", "expect_number(x, low=1)"])
def test_texts_and_manners_are_left_alone(source):
    assert set(changed(source)) <= {f"{source} → pass #1"}


def test_what_is_listed_as_equivalent_is_a_mutant_and_survives():
    assert set(STILL_RIGHT) <= set(MUTANTS)
    # One of each of ten pieces: those of one piece are most of the list, and take longest.
    shuffled = random.Random(0).sample(sorted(STILL_RIGHT), len(STILL_RIGHT))
    one_of_each = {MUTANTS[title].piece: title for title in shuffled}
    assert [title for title in list(one_of_each.values())[:10] if is_killed(MUTANTS[title])] == []


def test_a_test_of_layers_is_asked_about_no_more_of_them_once_it_was_wrong(monkeypatch):
    monkeypatch.setattr("tests.mutants._told", Counter())
    looked_at = []
    credulous = SimpleNamespace(piece="modes.accepts", implementation=lambda: lambda cls: not looked_at.append(cls))
    assert is_killed(credulous)
    [entry] = expectation(find("modes.accepts"), 0).truth.values()
    assert len(looked_at) == 1 + [*entry["seen"].values()].index({"fact": "rejected"})


@pytest.mark.parametrize("title", sorted({*SAMPLE, *past_survivors()}))
def test_a_mutant_loses_points(title):
    assert is_killed(MUTANTS[title])
