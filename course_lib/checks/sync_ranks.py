"""Scenarios on several ranks: what all of them return, or in words for a student which of them went wrong, and how."""

import contextlib
import ctypes
import os
import threading

import torch

from course_lib.ranks import RankError, run_ranks

__all__ = ["RANKS_LIMIT", "TimeLimit", "by_rank", "on_ranks"]

#: Seconds the ranks of a scenario may take. With those for stopping them it is less than `observe` allows.
RANKS_LIMIT = 6.0


class TimeLimit(Exception):
    """Ranks that had to be stopped. Seeing this name, `observe` runs no further scenario."""


def on_ranks(step, ranks):
    """What `step(rank)` returns on every rank, as a list.

    Raises:
        TimeLimit: a rank did not come back.
        RankError: some ranks raised, or wait for a collective that others never join; in words for a student.
        Exception: what all ranks raised alike.
    """
    try:
        with _on_one_processor():
            return run_ranks(step, ranks, timeout=RANKS_LIMIT)
    except RankError as error:
        failed = error
    raise _in_plain_words(failed, ranks)


@contextlib.contextmanager
def _on_one_processor():
    """Threads that start here share the processor that this one runs on, where the system lets us choose (Linux).

    Ranks of a scenario compute next to nothing and take turns: on several processors they spend as much time again on
    handing Python's lock from one to the other. Not beside an accelerator: threads that torch starts for it with the
    first backward would keep to that processor, too, for as long as the process lives.
    """
    if not hasattr(os, "sched_setaffinity") or torch.accelerator.is_available():
        yield
        return
    allowed = os.sched_getaffinity(0)  # 0 is this thread
    _keep_to({ctypes.CDLL(None).sched_getcpu()})
    try:
        yield
    finally:
        _keep_to(allowed)


def _keep_to(processors):
    """Run this thread on these. Where that is refused, as in some jails, it stays: no answer may lose points for it."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors)


def _in_plain_words(failed, ranks):
    """The error of a run, whichever rank happened to come first, with the line of the student's code in it."""
    errors = dict(sorted(failed.errors.items()))
    waiting, busy = {}, []
    for rank, where in sorted(failed.unfinished.items()):
        _, found, place = where.partition("waits in ")
        waiting.setdefault(place, []).append(rank) if found else busy.append(rank)
    if busy:
        running = any(thread.name in {f"rank {rank}" for rank in busy} for thread in threading.enumerate())
        stopped = " It could not be stopped and is still running: restart the kernel." if running else ""
        return TimeLimit(f"stopped after {RANKS_LIMIT:g} s: does rank {_listed(busy)} ever end?{stopped}")
    waits = "; ".join(f"rank {_listed(left)} left waiting in {place}" for place, left in waiting.items())
    if not errors:
        return RankError(f"{waits}: all ranks of a group have to call the same collectives, in the same order")
    rank, error = next(iter(errors.items()))
    alike = len(errors) == ranks and all(type(other) is type(error) for other in errors.values())
    if alike or isinstance(error, NotImplementedError):
        return error
    message = f"rank {rank} of {ranks} raised {type(error).__name__}: {error}"
    return RankError(message + f"; {waits}" * bool(waits)).with_traceback(error.__traceback__)


def _listed(items):
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def by_rank(results):
    """[{name: value}] of the ranks as one set of observations."""
    return {f"{name} on rank {rank}": value for rank, seen in enumerate(results) for name, value in seen.items()}
