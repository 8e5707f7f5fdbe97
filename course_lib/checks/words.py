"""What is wrong about an observation, in words for a student: short, and never a raw array."""

import math

import numpy as np

from course_lib.checks.observe import decode

__all__ = ["of_difference", "of_error"]


def of_error(error, asked):
    """(message, expected, got) of an observed exception.

    Args:
        error: as `observe` describes it.
        asked: what was asked, in brackets, to end the message with.
    """
    kind, text = error["kind"], error["message"]
    where = f" ({error['line']})" if error.get("line") else ""
    if kind in ("TimeLimit", "NotRun", "WrongReturn", "Unreadable"):
        return text, "", ""
    if kind == "RankError":  # says itself which rank raised what, or waits for whom
        return text + where + asked, "", ""
    return f"raised {kind}{': ' * bool(text)}{text}{where}{asked}", "no exception", kind


def of_difference(name, got, want, allowed):
    """(message, expected, got) of an observation that is further from the expected one than allowed.

    Args:
        name: of the observation.
        got, want: as `encode` writes them; `got` may be anything that the judge has read out of a bundle.
        allowed: the largest absolute error that would be right.
    """
    if "array" not in want:
        if name == "inputs changed":
            return f"modified in place: {_short(got)}. Work on a copy", "the inputs as they were", "changed inputs"
        return name, _short(want), _short(got)
    if "array" not in got:
        return f"{name}: not an array", _short(want), _short(got)
    if got.get("shape") != want["shape"]:
        return f"{name}: wrong shape", _of_shape(want), _of_shape(got)
    if got.get("dtype") != want["dtype"]:
        return f"{name}: wrong dtype", want["dtype"], str(got.get("dtype"))
    try:
        have, should = decode(got), decode(want)
    except ValueError:
        return f"{name}: could not be read", _short(want), "something else"
    return _of_values(name, have, should, allowed)


def _of_values(name, have, should, allowed):
    error = np.where(np.isfinite(have) == np.isfinite(should), np.abs(have - should), np.inf)
    error = np.nan_to_num(error, nan=0.0, posinf=np.inf)
    at = tuple(int(i) for i in np.argwhere(error > allowed)[0])
    place = ""
    if have.ndim == 1:
        place = f" in channel {at[0]}"
    elif have.ndim > 1:
        place = f" in channel {at[1]}, first at {list(at)}"
    if not math.isfinite(have[at]):
        message = f"{name}: {have[at]} where a number should be{place}"
    else:
        largest = f"largest error {error.max():.3g}, tolerance {allowed:.2g}"
        message = f"{name}: wrong value{place} ({largest})"
    return message, f"{should[at]:.6g}", f"{have[at]:.6g}"


def _short(entry):
    if "fact" in entry:
        return str(entry["fact"])[:80]
    if "array" in entry:
        return f"{entry['dtype']} array of {_of_shape(entry)}"
    return str(entry.get("other", "nothing"))[:80]


def _of_shape(entry):
    return f"shape {tuple(entry['shape'][:8])}"[:80]
