"""The trusted half of grading: compare observations with what is right, and recognise known mistakes.

The judge never calls the student's code. It trusts nothing in a bundle: whatever is not what `observe`
writes counts as a wrong observation.
"""

import functools
import math
from collections.abc import Mapping

import numpy as np

from course_lib.checks.expect import expectation
from course_lib.checks.observe import decode, stem
from course_lib.checks.text import plain
from course_lib.checks.verdict import Row, Verdict
from course_lib.checks.words import of_difference, of_error

__all__ = ["distance", "judge", "lost", "tolerance"]

#: Units in the last place, of the largest expected value, that an honest computation may lose. In a short dtype
#: only the result is rounded, and perhaps scale and shift: statistics are asked for in float32.
_ULPS = {"float16": 8 * 2.0**-10, "bfloat16": 8 * 2.0**-7, "float32": 256 * 2.0**-23, "float64": 256 * 2.0**-52}
#: Shipped expectations are compared on other computers: nothing is asked for beyond nine digits.
_FINEST = 1e-9
#: What is smaller is nothing: where every value is the rounding error of a zero, each way of computing has another.
_NOTHING = 1e-12
_PRINTED = 2000  # characters of a student's own printing that are looked at


def judge(piece, bundle, seed):
    """The verdict on a bundle of observations.

    Args:
        piece: the `Piece` that was asked.
        bundle: what `observe` returned, possibly through JSON and possibly forged.
        seed: the seed that was asked for. A bundle of another seed scores nothing: its numbers differ.

    Returns:
        A `Verdict`.

    Raises:
        ValueError: this edition of the library has no expectations for the seed.
    """
    wanted, given = _compared(piece, bundle, seed)
    unfinished = _not_implemented(piece, given)
    if unfinished:
        return Verdict(piece.name, tuple(Row(g.title, 0, g.points, unfinished) for g in piece.groups))

    problems = {g.title: _problem_of_group(g, wanted.truth, given) for g in piece.groups}
    mistakes = _recognise(piece, wanted, given, [g for g in piece.groups if problems[g.title]])
    rows = []
    for group in piece.groups:
        if problems[group.title] is None:
            rows.append(Row(group.title, group.points, group.points))
            continue
        mistake = mistakes.get(group.title)
        known = {"hint": mistake.hint, "read": mistake.read, "misconception": mistake.name} if mistake else {}
        rows.append(Row(group.title, 0, group.points, *problems[group.title], **known))
    return Verdict(piece.name, tuple(rows), _notes(given))


def lost(piece, bundle, seed, only=None):
    """What `judge` would give no points for, without a look for known mistakes.

    Args:
        piece, bundle, seed: as for `judge`.
        only: name of the one scenario to look at; all are looked at without it.

    Returns:
        Titles of the groups, a set; it is empty for full marks.
    """
    wanted, given = _compared(piece, bundle, seed)
    return {
        group.title
        for group in piece.groups
        for scenario in group.scenarios
        if only in (None, scenario.name) and _problem(scenario, wanted.truth[scenario.name], given[scenario.name])
    }


def _compared(piece, bundle, seed):
    """(the expectation, the scenarios of a bundle in the form that `observe` gives them)."""
    wanted = expectation(piece, seed)
    given = bundle.get("scenarios") if isinstance(bundle, dict) else None
    given = given if isinstance(given, dict) else {}
    given = {s.name: _as_entry(given.get(s.name)) for s in piece.scenarios}
    _check_inputs(piece, wanted, given)
    return wanted, given


def tolerance(scenario, name, want):
    """Largest absolute error that the observation `name` may have.

    Args:
        scenario: the `Scenario` it belongs to; its `within` decides where it is a number or names the observation.
        name: the observation's name.
        want: the encoded expectation: values of the lifted run, dtype of the run in the case's dtype.
    """
    if "array" not in want:
        return 0.0
    within = scenario.within
    if not isinstance(within, Mapping):
        return within
    if name in within:
        return within[name]
    scale = _largest(want["array"], tuple(want["shape"]))
    return max(max(_ULPS.get(want["dtype"], 0.0), _FINEST) * (scale or 1.0), _NOTHING)


# What is right, and what a mistake looks like, is compared with bundle after bundle.
@functools.lru_cache(maxsize=8192)
def _numbers(array, shape):
    return decode({"array": array, "shape": shape})


@functools.lru_cache(maxsize=8192)
def _largest(array, shape):
    values = _numbers(array, shape)
    finite = np.abs(values[np.isfinite(values)])
    return finite.max() if finite.size else 0.0


def distance(got, want, allowed):
    """How far an observation is from the expected one, in tolerances: at most 1 is right.

    A fact, a shape, a dtype or a NaN in the wrong place is infinitely far.
    """
    if "array" not in want:
        return 0.0 if got == want else math.inf
    if "array" not in got or got.get("dtype") != want["dtype"] or got.get("shape") != want["shape"]:
        return math.inf
    if got["array"] == want["array"]:
        return 0.0
    try:
        have, should = decode(got), _numbers(want["array"], tuple(want["shape"]))
    except ValueError:
        return math.inf
    if not np.array_equal(np.isfinite(have), np.isfinite(should)):
        return math.inf
    finite = np.isfinite(should)
    with np.errstate(over="ignore"):  # a forged 1e308 is just far away
        error = np.abs(have[finite] - should[finite])
        return float(error.max() / allowed) if error.size else 0.0


def _recognise(piece, wanted, given, failing):
    """Which known mistake explains each failing group, by title; groups nobody explains are left out.

    One mistake that explains every observation of the piece is the answer. Otherwise the student may have
    made several: each group is then explained by itself. A group about rounding shows only that something
    is inaccurate; it is explained last, and only where the other failures are understood.
    """
    if not failing:
        return {}
    # Where the answer is wrong most mistakes are ruled out at once, and what they do elsewhere is never computed.
    scenarios = sorted(piece.scenarios, key=lambda s: _problem(s, wanted.truth[s.name], given[s.name]) is None)
    whole = next((m for m in wanted.mistakes if _explains(scenarios, m.truth, wanted.truth, given)), None)
    if whole:
        return {group.title: whole for group in failing}
    exact = [group for group in failing if not _about_rounding(group)]
    found = {}
    for group in exact:
        fits = (m for m in wanted.mistakes if _explains(group.scenarios, m.truth, wanted.truth, given))
        mistake = next((m for m in fits if _problem_of_group(group, wanted.truth, m.truth)), None)
        if mistake:
            found[group.title] = mistake
    if len(found) < len(exact):
        return found
    for group in filter(_about_rounding, failing):
        known = list(found.values())
        fits = (m for m in [*known, *wanted.mistakes] if _problem_of_group(group, wanted.truth, m.truth))
        mistake = next((m for m in fits if m in known or _right_but_for_rounding(piece, wanted.truth, m)), None)
        if mistake:
            found[group.title] = mistake
    return found


def _about_rounding(group):
    return all(scenario.rounding for scenario in group.scenarios)


def _right_but_for_rounding(piece, truth, mistake):
    exact = (group for group in piece.groups if not _about_rounding(group))
    return not any(_problem_of_group(group, truth, mistake.truth) for group in exact)


def _explains(scenarios, mistake, truth, given):
    """Whether the mistake would have produced just these observations."""
    return all(_same(s, mistake[s.name], truth[s.name], given[s.name]) for s in scenarios)


def _same(scenario, mistake, truth, given):
    if mistake["error"] or given["error"]:
        if not (mistake["error"] and given["error"]):
            return False
        # The kind alone is too little to know a mistake by.
        return mistake["error"]["kind"] == given["error"]["kind"] and stem(mistake["error"]) == stem(given["error"])
    if scenario.rounding:
        return all(
            _right(scenario, name, want, mistake["seen"].get(name, {}))
            == _right(scenario, name, want, given["seen"].get(name, {}))
            for name, want in truth["seen"].items()
            if scenario.concerns(name, want)
        )
    for name, want in mistake["seen"].items():
        if given["seen"].get(name) == want or not scenario.concerns(name, truth["seen"].get(name, want)):
            continue
        # What a mistake leaves at rounding errors around zero is as coarse as the right value is.
        right = truth["seen"].get(name, want)
        allowed = max(tolerance(scenario, name, want), tolerance(scenario, name, right))
        if distance(given["seen"].get(name, {}), want, allowed) > 1:
            return False
    return True


def _right(scenario, name, want, got):
    return distance(got, want, tolerance(scenario, name, want)) <= 1


def _problem_of_group(group, truth, given):
    return next(filter(None, (_problem(s, truth[s.name], given[s.name]) for s in group.scenarios)), None)


def _problem(scenario, truth, given):
    """(message, expected, got) of the first difference, or None."""
    error = given["error"]
    asked = f" [asked with {truth['asked']}]" if truth["asked"] else ""
    if error:
        return of_error(error, asked)
    for name, want in truth["seen"].items():
        got = given["seen"].get(name, {})
        if got == want or not scenario.concerns(name, want):
            continue
        allowed = tolerance(scenario, name, want)
        if distance(got, want, allowed) > 1:
            message, expected, had = of_difference(name, got, want, allowed)
            return message + asked, expected, had
    return None


def _not_implemented(piece, given):
    errors = [entry["error"] for entry in given.values() if entry["error"]]
    stubs = [error for error in errors if error.get("kind") == "NotImplementedError"]
    if not stubs or len(stubs) < len(given):
        return ""  # a part that is finished is judged
    return " ".join(filter(None, (f"not implemented yet: {piece.attribute}", str(stubs[0].get("message", "")))))


def _check_inputs(piece, wanted, given):
    """Other inputs than the expectations were made for: no wrong answer, but no comparison either."""
    for scenario in piece.scenarios:
        entry = given[scenario.name]
        if entry["error"] is None and entry["digest"] != wanted.truth[scenario.name]["digest"]:
            entry["error"] = {
                "kind": "Unreadable",
                "message": (
                    "the inputs drawn where this ran are not those the expected values were made for: "
                    "compare the NumPy version with requirements.txt"
                ),
            }


def _notes(given):
    printed = [entry["printed"] for entry in given.values() if entry["printed"]]
    lines = list(dict.fromkeys(line[:200] for text in printed for line in text.splitlines()))
    return (*lines[:5], "…") if len(lines) > 5 else tuple(lines)


def _as_entry(entry):
    """A scenario's part of a bundle with the form `observe` gives it; what is not of that form is unreadable."""
    if (
        isinstance(entry, dict)
        and isinstance(entry.get("seen"), dict)
        and isinstance(entry.get("error", "missing"), dict | None)
        and isinstance(entry.get("printed"), str)
    ):
        error = entry["error"]
        return {
            "seen": {name: _as_value(value) for name, value in entry["seen"].items()},
            "error": None if error is None else {key: plain(error.get(key)) for key in ("kind", "message", "line")},
            "printed": plain(entry["printed"], _PRINTED),
            "digest": plain(entry.get("digest")),
        }
    error = {"kind": "Unreadable", "message": "no observations came back from the kernel for this part", "line": ""}
    return {"seen": {}, "error": error, "printed": "", "digest": ""}


def _as_value(value):
    """An encoded value as `encode` writes it; empty where it is none."""
    if not isinstance(value, dict):
        return {}
    if "array" in value:
        shape = value.get("shape")
        whole = isinstance(shape, list) and all(type(axis) is int and 0 <= axis < 2**63 for axis in shape)
        if whole and isinstance(value["array"], str) and isinstance(value.get("dtype"), str):
            return {"array": value["array"], "dtype": plain(value["dtype"], 40), "shape": shape}
        return {}
    if "fact" in value:
        fact = value["fact"]
        small = type(fact) is bool or (type(fact) is int and abs(fact) < 2**63)
        if isinstance(fact, str):
            return {"fact": plain(fact)}
        return {"fact": fact} if fact is None or small else {}
    return {"other": plain(value.get("other"), 80)}
