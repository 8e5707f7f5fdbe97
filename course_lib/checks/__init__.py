"""Checks: what is asked of a student's pieces, and how an answer is judged.

>>> from course_lib.checks import check
>>> check("algorithm.recover_identity", lambda mean, var, eps=1e-5: (var, mean)).points
0.0
"""

import os

from course_lib.checks.expect import PUBLIC_SEED
from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from course_lib.checks.release import expect_release
from course_lib.checks.verdict import Row, Verdict

__all__ = ["GRADING_SECONDS", "GRADING_SEED", "OBSERVATIONS", "Row", "Verdict", "check", "expect_release"]

#: Set by the grader in the kernel's environment: `check` then only answers, and the grader judges.
GRADING_SEED = "BATCHNORM_COURSE_SEED"
#: Set by the grader as well: seconds that one check may take.
GRADING_SECONDS = "BATCHNORM_COURSE_SECONDS"
#: MIME type under which the kernel hands its observations to the grader.
OBSERVATIONS = "application/vnd.batchnorm-course.observations+json"


class _Observed:
    """What `check` returns while grading: the observations, and no verdict."""

    def __init__(self, bundle):
        self._bundle = bundle

    def _repr_mimebundle_(self, **_):
        return {"text/plain": "observed", OBSERVATIONS: self._bundle}


def check(piece, impl, *, seed=PUBLIC_SEED, device=None):
    """Exercise an implementation of a piece and say what is right, what is not, and why.

    Args:
        piece: `"<topic>.<name>"`, for example `"algorithm.batch_stats"`.
        impl: the function or class to check.
        seed: what the inputs are drawn from. The student edition knows what is right for seed 0 only.
        device: None or "cpu".

    Returns:
        A `Verdict` with `points`, `max_points`, `messages` and `passed`. Shown in a notebook it is a table;
        `print` gives it as text.

    Raises:
        ValueError: no piece of this name; a seed or a device that cannot be checked here.

    Example:
        >>> from course_lib.algorithm import batch_stats
        >>> check("algorithm.batch_stats", batch_stats).passed
        True
    """
    asked = find(piece)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected a seed that is a whole number ≥ 0, got {seed!r}")
    if device not in (None, "cpu"):
        raise ValueError(
            f"expected device None or 'cpu', got {device!r}: what concerns other devices is checked in any case"
        )
    if os.environ.get(GRADING_SEED):
        budget = float(os.environ.get(GRADING_SECONDS) or "inf")
        return _Observed(observe(asked, impl, int(os.environ[GRADING_SEED]), budget=budget))
    return judge(asked, observe(asked, impl, seed), seed)
