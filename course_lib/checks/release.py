"""Which release a notebook and the installed library are from: ids of problem sets, compared by both sides."""

import json
import re
import unicodedata
from importlib import resources

from course_lib.checks.piece import COURSE

__all__ = ["book_address", "expect_release", "link_to", "release_of"]


def release_of(problem_set):
    """The release id the installed student edition has for a problem set; None in the instructor's tree."""
    return _edition().get("problem_sets", {}).get(problem_set)


def book_address():
    """Where the student edition says the book is; `""` where it does not say, and in the instructor's tree."""
    return _edition().get("book", "")


def link_to(read, book):
    """Address of what a hint says to read.

    Args:
        read: `"chapter 2, «Bessel's correction»"`.
        book: address of the book's first page, or its folder; `""` for none.

    Returns:
        The address, `""` without a book.

    Example:
        >>> link_to("chapter 1, «Where eps goes»", "https://example.org/book/")
        'https://example.org/book/chapters/01-algorithm.html#where-eps-goes'
    """
    found = re.fullmatch(r"chapter (\d+), «(.+)»", read)
    if not (book and found):
        return ""
    chapter, heading = int(found[1]), unicodedata.normalize("NFKD", found[2]).encode("ascii", "ignore").decode()
    # As Sphinx makes the ids of headings.
    anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-").lstrip("-0123456789")
    folder = book.removesuffix("index.html").rstrip("/")
    return f"{folder}/chapters/{chapter:02}-{COURSE[chapter - 1].replace('_', '-')}.html#{anchor}"


def _edition():
    file = resources.files("course_lib.checks").joinpath("release.json")
    return json.loads(file.read_text()) if file.is_file() else {}


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
