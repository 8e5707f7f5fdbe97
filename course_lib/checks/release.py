"""Which release a notebook and the installed library are from: ids of problem sets, compared by both sides."""

import json
from importlib import resources

__all__ = ["expect_release", "release_of"]


def release_of(problem_set):
    """The release id the installed student edition has for a problem set; None in the instructor's tree."""
    file = resources.files("course_lib.checks").joinpath("release.json")
    if not file.is_file():
        return None
    return json.loads(file.read_text())["problem_sets"].get(problem_set)


def expect_release(problem_set, release):
    """Stop a notebook that runs against the library of another release. Silent when they fit.

    Args:
        problem_set: for example `"ps1-algorithm"`.
        release: the id written into the notebook.

    Raises:
        ImportError: the installed student edition is of another release.

    Example:
        >>> expect_release("ps1-algorithm", "of the instructor's tree: any")
    """
    installed = release_of(problem_set)
    if installed not in (None, release):
        raise ImportError(
            f"this notebook belongs to release {release} of {problem_set}, the installed course_lib to {installed}: "
            "in the folder of the zip that the notebook came in, run "
            "pip install --force-reinstall --no-deps batchnorm_course_student-*.whl, and restart the kernel"
        )
