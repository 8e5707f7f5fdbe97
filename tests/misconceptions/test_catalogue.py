"""The catalogue of mistakes: readable, applicable, and pointing into the book."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from course_lib import plug_in, unplug
from course_lib.checks.piece import TOPICS, pieces
from course_lib.misconceptions import catalogue, edit, reference

CHAPTERS = Path(__file__).parents[2] / "chapters"
MISTAKES = [mistake for topic in TOPICS for mistake in catalogue(topic)]
mistakes = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.piece}-{m.name}")


def code_of(implementation):
    """The code of a function, or of every method of a class."""
    functions = vars(implementation).values() if isinstance(implementation, type) else [implementation]
    return [function.__code__ for function in functions if hasattr(function, "__code__")]


def headings(chapter):
    (path,) = CHAPTERS.glob(f"{int(chapter):02}-*.md")
    return re.findall(r"^#+ +(.+?) *$", path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.name)
def test_a_piece_has_at_least_four_known_mistakes(piece):
    assert sum(mistake.piece == piece.name for mistake in MISTAKES) >= 4


def test_names_are_unique_in_a_piece():
    assert len({(mistake.piece, mistake.name) for mistake in MISTAKES}) == len(MISTAKES)


@mistakes
def test_a_mistake_can_be_made(mistake):
    made = mistake.implementation()
    assert all(callable(part) for part in (made if isinstance(made, tuple) else (made,)))


@mistakes
def test_a_hint_is_about_one_sentence(mistake):
    assert 20 <= len(mistake.hint) <= 160
    assert mistake.hint.endswith(".") and len(re.findall(r"[.!?](?: |$)", mistake.hint)) <= 2


@mistakes
def test_a_hint_contains_no_code(mistake):
    # `-=` is the name of what went wrong; calls, indices, attributes, keywords and edits are code.
    assert not re.search(r"\w\(\)|\w\[|`|==|\*\*|np\.|axis=|\w\.\w+\(|return \w+,|lambda", mistake.hint)
    if not callable(mistake.change):
        assert not any(code and code in mistake.hint for edit in mistake.change for code in edit)


@mistakes
def test_a_mistake_says_where_people_write_it(mistake):
    assert mistake.seen


@mistakes
def test_what_to_read_is_a_heading_of_the_book(mistake):
    chapter, heading = re.fullmatch(r"chapter (\d+), «(.+)»", mistake.read).groups()
    assert heading in headings(chapter)


# --- edits ------------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_the_reference_does():
    f = edit("algorithm.recover_identity", [("mean.copy()", "mean + 1")])
    assert f(np.array([5.0]), np.array([4.0]), 0.0)[1].tolist() == [6.0]


def test_an_edit_leaves_the_reference_as_it_is():
    edit("algorithm.recover_identity", [("mean.copy()", "mean + 1")])
    assert reference("algorithm.recover_identity")(np.array([5.0]), np.array([4.0]), 0.0)[1].tolist() == [5.0]


@pytest.mark.parametrize(("old", "times"), [("not in there", 0), ("mean", r"\d+")])
def test_an_edit_that_does_not_match_once_breaks_loudly(old, times):
    with pytest.raises(ValueError, match=f"expected '{old}' once in .*recover_identity, found it {times} times"):
        edit("algorithm.recover_identity", [(old, "x")])


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.name)
def test_the_reference_is_the_librarys_code_and_not_its_object(piece):
    librarys = getattr(importlib.import_module(f"course_lib.{piece.topic}"), piece.attribute)
    ours = reference(piece.name)
    ours = ours[-1] if piece.takes else ours
    assert ours is not librarys and ours.__name__ == librarys.__name__
    for one, other in zip(code_of(ours), code_of(librarys), strict=True):
        assert one.co_code == other.co_code


def test_the_reference_does_not_call_what_was_plugged_in():
    x, ones = np.arange(6.0).reshape(3, 2), np.ones(2)
    before = reference("algorithm.batch_norm_forward")(x, ones, ones)[0]

    def batch_stats(x):
        raise AssertionError("a student's piece")

    plug_in(batch_stats)
    try:
        np.testing.assert_array_equal(reference("algorithm.batch_norm_forward")(x, ones, ones)[0], before)
    finally:
        unplug()
