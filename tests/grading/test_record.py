"""The record: what is kept of a grading, and read back."""

import json

import pytest

from course_lib.checks import Row, Verdict
from course_lib.grading.record import GRADED, PERSON, Record

ROWS = (
    Row("right", 1.5, 1.5),
    Row("wrong", 0, 0.5, "y: wrong value", "1", "2", "eps is outside", "chapter 1, «Where eps goes»", "eps_outside"),
)


def record(**changes):
    verdicts = {"check-a": Verdict("algorithm.batch_stats", ROWS, ("a note",)), "check-b": Verdict("x", ROWS[:1])}
    fields = dict(assignment="ps1", release="0a1b2c3d", status=GRADED, reason="", verdicts=verdicts)
    return Record(**{**fields, "repairs": ["a repair"], "digest": "ff", "seconds": 1.5, **changes})


def test_a_record_survives_json():
    assert Record.from_json(record().to_json()) == record()


def test_points_are_the_sum_of_the_checks():
    assert (record().points, record().max_points) == (3.0, 3.5)


def test_json_has_a_row_per_group_and_the_points():
    data = json.loads(record().to_json())
    assert data["points"] == 3.0
    assert data["checks"]["check-a"]["rows"][1]["misconception"] == "eps_outside"


def test_the_notebook_is_not_kept_twice():
    assert "a notebook" not in record(notebook={"cells": ["a notebook"]}).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "eps is outside"),
        ({"reason": "run it by hand", "status": PERSON}, "run it by hand"),
        ({"verdicts": {"a": Verdict("x", ROWS[:1])}}, "all right"),
        ({"verdicts": {"a": Verdict("x", (Row("t", 0, 1, "not implemented yet"),))}}, "not implemented yet"),
    ],
)
def test_the_message_is_the_reason_else_a_hint_else_what_is_wrong(changes, message):
    assert record(**changes).message == message


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "3", '{"checks": []}', record().to_json()[:-20], '{"checks": {"a": {"rows": 3}}}']
)
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ValueError, match="expected a grading record"):
        Record.from_json(text)
