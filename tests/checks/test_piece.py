"""Pieces, groups and the small helpers of scenarios."""

import importlib

import numpy as np
import pytest

from course_lib.checks.piece import TOPICS, WrongReturn, find, named, pieces, raised

PIECES = [piece.name for piece in pieces()]


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_found_by_its_name(name):
    assert find(name).name == name


@pytest.mark.parametrize("name", ["algorithm.no_such", "batch_stats", "", None, 3, find])
def test_an_unknown_piece_is_an_error_that_lists_those_there_are(name):
    with pytest.raises(ValueError, match=r"expected the name of a piece, got .*: there are .*algorithm\.batch_stats"):
        find(name)


def test_pieces_come_in_the_order_of_the_problem_set():
    names = ["batch_stats", "batch_norm_forward", "batch_norm_backward", "recover_identity"]
    assert [piece.attribute for piece in pieces("algorithm")] == names


def test_the_points_of_the_first_problem_set():
    assert [piece.max_points for piece in pieces("algorithm")] == [3, 3, 3, 1]


def test_every_topic_has_pieces():
    assert {piece.topic for piece in pieces()} == set(TOPICS)


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_public_api_of_its_topic(name):
    piece = find(name)
    assert piece.attribute in importlib.import_module(f"course_lib.{piece.topic}").__all__


@pytest.mark.parametrize("name", PIECES)
def test_names_of_scenarios_and_titles_of_groups_are_unique_in_a_piece(name):
    piece = find(name)
    # A scenario may stand in several groups, which look at different observations of it.
    assert len({s.name for s in piece.scenarios}) == len({(s.name, s.run) for s in piece.scenarios})
    assert len({g.title for g in piece.groups}) == len(piece.groups)


def test_the_problem_set_of_a_piece():
    assert find("algorithm.batch_stats").problem_set == "ps1-algorithm"


@pytest.mark.parametrize("result", [(1, 2), [1, 2]])
def test_a_tuple_or_a_list_is_named(result):
    assert named(result, "mean", "var") == {"mean": 1, "var": 2}


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (None, "got None: is there a return?"),
        (np.ones((2, 3)), "got ndarray of shape (2, 3)"),
        (3.0, "got float"),
        ({"mean": 1, "var": 2}, "got dict"),
        ((1,), "got 1 values"),
        ((1, 2, 3), "got 3 values"),
        ((), "got 0 values"),
    ],
)
def test_another_form_is_a_wrong_return_that_says_what_came(result, got):
    with pytest.raises(WrongReturn) as error:
        named(result, "mean", "var")
    assert str(error.value) == f"expected a tuple (mean, var) to be returned, {got}"


@pytest.mark.parametrize(
    ("error", "name"),
    [(ValueError, "ValueError"), (UnicodeError, "ValueError"), (TypeError, "TypeError"), (ZeroDivisionError,) * 2],
)
def test_an_exception_is_known_by_its_kind(error, name):
    def fails():
        raise error("no")

    assert raised(fails) == getattr(name, "__name__", name)


def test_no_exception_is_nothing():
    assert raised(lambda: None) == "no error"


def test_a_stub_stays_a_stub():
    def stub():
        raise NotImplementedError("yours to write")

    with pytest.raises(NotImplementedError):
        raised(stub)
