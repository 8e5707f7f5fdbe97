"""A class folder: records, gradebook, feedback, resuming."""

import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
from nbgrader.api import Gradebook

from course_lib.grading import classroom
from course_lib.grading.classroom import Classroom, graders
from tests.sample_class import hand_ins

PROBLEM_SET = "ps1-algorithm"
STUDENTS = ("right_numpy", "untouched")


@pytest.fixture(scope="module")
def pool():
    """Processes that grade for every test here: starting them takes longer than grading."""
    with graders(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pool):
    """A class of two and one broken file, graded once."""
    folder = tmp_path_factory.mktemp("class")
    class_of = {name: hand_ins(PROBLEM_SET)[name] for name in STUDENTS}
    class_of["broken"] = {"algorithm.ipynb": b'{"cells": ['}
    for student, files in class_of.items():
        for name, data in files.items():
            path = folder / "submitted" / student / PROBLEM_SET / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    graded = {student: (record, fresh) for student, record, fresh in Classroom(folder, PROBLEM_SET).grade(pool=pool)}
    assert {student: fresh for student, (_, fresh) in graded.items()} == dict.fromkeys(class_of, True)
    return folder


def _record(folder, student):
    return json.loads((folder / "autograded" / student / PROBLEM_SET / "algorithm.record.json").read_text())


@pytest.mark.parametrize(("student", "points"), [("right_numpy", 10), ("untouched", 0), ("broken", 0)])
def test_record_gradebook_and_feedback_agree(folder, student, points):
    assert _record(folder, student)["points"] == points
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
        assert gradebook.find_submission(PROBLEM_SET, student).score == points
    page = (folder / "feedback" / student / PROBLEM_SET / "algorithm.html").read_text()
    assert f"Score: {float(points)} / 10.0" in page


def test_a_submission_that_cannot_be_read_says_why_in_its_feedback(folder):
    assert _record(folder, "broken")["status"] == "needs a person"
    page = (folder / "feedback" / "broken" / PROBLEM_SET / "algorithm.html").read_text()
    assert "no readable notebook" in page and "hand it in again" in page


def test_what_needs_a_person_is_marked_in_the_gradebook(folder):
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
        assert gradebook.find_submission(PROBLEM_SET, "broken").needs_manual_grade
        assert not gradebook.find_submission(PROBLEM_SET, "right_numpy").needs_manual_grade


def test_a_record_does_not_go_out_with_the_feedback(folder):
    assert [path.name for path in (folder / "feedback" / "right_numpy" / PROBLEM_SET).iterdir()] == ["algorithm.html"]


def test_feedback_may_not_load_or_run_anything(folder):
    page = (folder / "feedback" / "right_numpy" / PROBLEM_SET / "algorithm.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_nothing_is_graded_twice(folder, pool):
    assert [fresh for _, _, fresh in Classroom(folder, PROBLEM_SET).grade(pool=pool)] == [False, False, False]


def test_a_changed_submission_is_graded_again_and_no_other(folder, pool):
    path = folder / "submitted" / "untouched" / PROBLEM_SET / "algorithm.ipynb"
    before = path.read_bytes()
    path.write_bytes(hand_ins(PROBLEM_SET)["right_numpy"]["algorithm.ipynb"])
    try:
        fresh = {
            student: (record.points, new) for student, record, new in Classroom(folder, PROBLEM_SET).grade(pool=pool)
        }
        assert fresh == {"broken": (0, False), "right_numpy": (10, False), "untouched": (10, True)}
        with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
            assert gradebook.find_submission(PROBLEM_SET, "untouched").score == 10
    finally:
        path.write_bytes(before)
        list(Classroom(folder, PROBLEM_SET).grade(pool=pool))


def test_an_interrupted_run_goes_on_where_it_stopped(folder, pool):
    """Killed after the first of three: the next run grades the other two."""
    for student in ("right_numpy", "broken", "untouched"):
        (folder / "autograded" / student / PROBLEM_SET / "algorithm.record.json").unlink()
    run = Classroom(folder, PROBLEM_SET).grade(pool=pool)
    next(run)
    run.close()
    assert [fresh for _, _, fresh in Classroom(folder, PROBLEM_SET).grade(pool=pool)] == [False, True, True]


def test_links_in_a_submission_are_not_followed(tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_text("{}")
    (tmp_path / "hand-in").mkdir()
    (tmp_path / "hand-in" / "algorithm.ipynb").symlink_to(secret)
    assert classroom._files(tmp_path / "hand-in") == {}


@pytest.fixture(scope="module")
def twice(tmp_path_factory, pool):
    """A class of one, collected from nbgrader's exchange and graded, given a point by hand, collected and graded again.

    The files of the second time are what nbgrader's own autograde would have left: read-only.
    """
    folder = tmp_path_factory.mktemp("twice")
    place = folder / "submitted" / "ada" / PROBLEM_SET
    place.mkdir(parents=True)
    (place / "algorithm.ipynb").write_bytes(hand_ins(PROBLEM_SET)["untouched"]["algorithm.ipynb"])
    (place / "timestamp.txt").write_text("2027-01-01 12:00:00 UTC")
    records = []
    for secret in ("first", "second"):
        (place / "submission_secret.txt").write_text(secret)
        records += [record for _, record, fresh in Classroom(folder, PROBLEM_SET).grade(pool=pool) if fresh]
        if secret == "first":
            (folder / "autograded" / "ada" / PROBLEM_SET / "algorithm.ipynb").chmod(0o444)
            with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
                [grade, *_] = gradebook.find_submission_notebook("algorithm", PROBLEM_SET, "ada").grades
                grade.manual_score, grade.needs_manual_grade = 1.0, False
                gradebook.db.commit()
    return folder, records


def test_what_the_exchange_lays_beside_a_submission_goes_with_its_feedback(twice):
    folder, records = twice
    place = folder / "feedback" / "ada" / PROBLEM_SET
    assert {path.name for path in place.iterdir()} == {"algorithm.html", "submission_secret.txt", "timestamp.txt"}
    assert (place / "submission_secret.txt").read_text() == "second"
    assert [record.repairs for record in records] == [[], []]


def test_points_given_by_hand_stay_and_are_to_be_looked_at_again_when_the_submission_changes(twice):
    with Gradebook(f"sqlite:///{twice[0] / 'gradebook.db'}") as gradebook:
        submission = gradebook.find_submission(PROBLEM_SET, "ada")
        assert submission.score == 1 and submission.needs_manual_grade


def test_what_nbgrader_has_made_read_only_is_replaced(twice):
    assert (twice[0] / "autograded" / "ada" / PROBLEM_SET / "algorithm.ipynb").stat().st_mode & 0o200


def test_a_class_without_submissions_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="collect them there, one folder per student"):
        Classroom(tmp_path, PROBLEM_SET)


class _Killed:
    """A process pool whose worker is killed while it grades."""

    def submit(self, *args, **kwargs):
        future = Future()
        future.set_exception(BrokenProcessPool("killed"))
        return future


def test_a_killed_grading_process_says_that_nothing_is_lost(folder):
    with pytest.raises(RuntimeError, match="What is graded is kept: run the same command again"):
        list(Classroom(folder, PROBLEM_SET).grade(again=True, pool=_Killed()))
