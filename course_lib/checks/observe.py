"""The untrusted half of grading: run an implementation and write down what it did.

An observation is plain data (JSON), so that it can leave the student's kernel and be judged elsewhere.
Nothing here knows what is right.
"""

import base64
import contextlib
import ctypes
import io
import linecache
import math
import re
import sys
import threading
import time
import traceback
import warnings

import numpy as np

from course_lib.checks.case import Case
from course_lib.checks.piece import WrongReturn
from course_lib.checks.text import plain

__all__ = ["TIME_LIMIT", "decode", "encode", "observe", "stem"]

#: Seconds one scenario may take. The slowest right answers (loops in plain Python) need well under one.
TIME_LIMIT = 10.0
_PRINTED = 2000  # characters of the student's own printing that are kept


class _TimeUp(BaseException):
    """Raised inside a scenario that ran out of time. A BaseException, so that `except Exception` lets it pass."""


class _Printed(io.StringIO):
    """What a student's code prints. Code that closes `sys.stdout` closes nothing of ours."""

    def close(self):
        pass


def observe(piece, impl, seed, *, lift=False, limit=TIME_LIMIT, budget=math.inf, only=None):
    """What `impl` does in every scenario of `piece`. Never raises, the user's own interrupt aside.

    Args:
        piece: a `Piece`.
        impl: the student's object.
        seed: what the inputs are drawn from.
        lift: run on inputs lifted to float64 (for the truth; a student's object is never lifted).
        limit: seconds a scenario may take. After the first that takes longer, the rest is not run.
        budget: seconds all scenarios together may take; none of several gets more than half of them.
        only: name of the one scenario to run; all are run without it.

    Returns:
        A JSON-able bundle `{"piece", "seed", "scenarios": {name: entry}}`, of entries `{"seen", "error", "printed",
        "digest", "asked", "exact"}`; the last as in `Case`.
    """
    scenarios = {}
    out_of_time = False
    alone = len({scenario.name for scenario in piece.scenarios}) == 1
    share, until = budget if alone else budget / 2, time.monotonic() + budget
    for scenario in piece.scenarios:
        if scenario.name in scenarios or only not in (None, scenario.name):  # one may stand in several groups
            continue
        if out_of_time:
            error = {"kind": "NotRun", "message": "not run, because an earlier run had to be stopped"}
            entry = {"seen": {}, "error": error, "printed": "", "digest": "", "asked": "", "exact": False}
            scenarios[scenario.name] = entry
            continue
        seconds = max(0.0, min(limit * scenario.patience, share, until - time.monotonic()))
        entry = _observe_one(piece, scenario, impl, seed, lift, seconds)
        out_of_time = bool(entry["error"]) and entry["error"]["kind"] == "TimeLimit"
        scenarios[scenario.name] = entry
    return {"piece": piece.name, "seed": seed, "scenarios": scenarios}


def _observe_one(piece, scenario, impl, seed, lift, limit):
    case = Case(f"{piece.name}/{scenario.name}", seed, scenario.dtypes, lift=lift)
    printed = _Printed()
    seen, error = {}, None
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            seen, raised = _with_time_limit(lambda: _encoded(scenario.run(impl, case)), limit)
            error = None if raised is None else _describe(raised)
        except _TimeUp as late:
            error = {"kind": "TimeLimit", "message": f"stopped after {limit:.3g} s: does a loop never end?{late}"}
        except Exception as raised:  # no thread could be started; the user's interrupt is none of these
            error = _describe(raised)
    for warning in warned:
        print(f"{warning.category.__name__}: {_text(warning.message)}", file=printed)
    said = _text(printed.getvalue(), _PRINTED)
    about = {"printed": said, "digest": case.digest(), "asked": case.asked(), "exact": case.exact}
    return {"seen": seen, "error": error, **about}


def _encoded(observations):
    return {name: encode(value) for name, value in observations.items()}


def encode(value):
    """A value as JSON: `{"array", "dtype", "shape"}`, `{"fact"}` or, for anything else, `{"other"}`.

    An array is NumPy's or a torch tensor on the CPU; its numbers travel as float64.

    Example:
        >>> encode(np.float32([1, 2]))["dtype"], encode("ValueError"), encode(object)
        ('float32', {'fact': 'ValueError'}, {'other': 'type'})
    """
    if isinstance(value, float):
        value = np.float64(value)
    dtype = str(getattr(value, "dtype", ""))
    torch = sys.modules.get("torch")  # where a tensor came from, torch is loaded
    if torch and isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.is_complex() or value.layout != torch.strided:
            return {"other": f"{type(value).__name__} on {value.device.type}"}
        dtype = dtype.removeprefix("torch.")
        value = value.detach().double().numpy()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiu":
        data = np.ascontiguousarray(value, dtype="<f8")
        return {"array": base64.b64encode(data.tobytes()).decode(), "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, str):
        return {"fact": _text(value)}
    if value is None or (isinstance(value, bool | int) and abs(value) < 2**63):  # larger ones have no text in JSON
        return {"fact": value}
    return {"other": type(value).__name__}


def decode(entry):
    """The float64 array of an encoded one.

    Raises:
        ValueError: the entry was not written by `encode`.
    """
    try:
        data = np.frombuffer(base64.b64decode(entry["array"], validate=True), dtype="<f8")
        return data.reshape([int(axis) for axis in entry["shape"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected an encoded array, got something that is none: {error}") from None


def _describe(error):
    """An exception as an observation: kind, message, and the line of the student's own code it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_students(f.filename)]
    if isinstance(error, WrongReturn):
        return {"kind": "WrongReturn", "message": _text(error)}
    described = {"kind": _text(type(error).__name__), "message": _text(error)}
    if frames:
        line = linecache.getline(frames[-1].filename, frames[-1].lineno).strip()
        described["line"] = _text(f"line {frames[-1].lineno} of {frames[-1].name}: {line}", 200)
    return described


def stem(error):
    """How the message of an observed error begins: what two runs of one mistake share, before it quotes shapes."""
    return " ".join(re.findall(r"[^\W\d_]+", error["message"])[:5])


def _text(value, length=500):
    """`str(value)` as a plain text, also where `str` fails."""
    try:
        text = str(value)
    except BaseException:
        text = f"a {type(value).__name__} without a readable message"
    return plain(text, length)


def _is_students(filename):
    ours = "course_lib" in filename.replace("\\", "/").split("/")
    return not (ours or filename.startswith((sys.prefix, sys.base_prefix)) or filename.startswith("<frozen"))


def _with_time_limit(function, seconds):
    """(value, exception) of `function()`, run in a thread of its own and stopped after `seconds`.

    This works where POSIX signals do not, and an interrupt that the function raises is not the user's.

    A thread that sits in a blocking call cannot be stopped; it is left behind, and being a daemon it
    does not keep the process alive.
    """
    box, done = {}, threading.Event()

    def run():
        try:
            box["value"] = function()
        except BaseException as error:
            box["error"] = error
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    # The event, and not `thread.join`: Python 3.11 takes a thread for dead when the wait for it is interrupted.
    try:
        thread.start()
        in_time = done.wait(seconds)
    except KeyboardInterrupt:
        _stop(thread, done)
        raise
    if not in_time:
        _stop(thread, done)
        raise _TimeUp("" if done.is_set() else " It could not be stopped and is still running: restart the kernel.")
    return box.get("value", {}), box.get("error")


def _stop(thread, done):
    """Raise inside `thread` until it is done; a bare `except:` in a loop swallows the first few."""
    give_up = time.monotonic() + 1.0
    ident = ctypes.c_ulong(thread.ident or 0)
    while not done.is_set() and time.monotonic() < give_up:
        if not ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_TimeUp)):
            break
        done.wait(0.02)
