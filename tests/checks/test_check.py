"""The public call: `check(piece, impl)`."""

import base64
import json

import pytest

from course_lib.checks import GRADING_SEED, OBSERVATIONS, check, expect_release
from course_lib.checks.judge import judge
from course_lib.checks.piece import find
from course_lib.misconceptions import reference

PIECE = "algorithm.batch_stats"


@pytest.mark.parametrize("name", ["algorithm.batch_norm", "running_stats.no_such", "batch_stats", None, len])
def test_an_unknown_piece_is_an_error_that_says_which_there_are(name):
    with pytest.raises(ValueError, match=r"expected the name of a piece, got .*algorithm\.batch_stats"):
        check(name, reference(PIECE))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_cpu_is_a_device(device):
    assert check(PIECE, reference(PIECE), device=device).passed


@pytest.mark.parametrize("device", ["cuda", "meta", "cpu:1", 0])
def test_another_device_is_an_error(device):
    with pytest.raises(ValueError, match=f"expected device None or 'cpu', got {device!r}: "):
        check(PIECE, reference(PIECE), device=device)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
def test_what_is_no_seed_is_an_error(seed):
    with pytest.raises(ValueError, match="expected a seed that is a whole number ≥ 0, got "):
        check(PIECE, reference(PIECE), seed=seed)


def test_a_check_does_not_change_the_next_one():
    first, again = (str(check(PIECE, reference(PIECE))) for _ in range(2))
    assert first == again


# --- while grading ----------------------------------------------------------------------------------------------


@pytest.fixture
def answered(monkeypatch):
    """What the grader gets for the reference of the first piece, at seed 5."""
    monkeypatch.setenv(GRADING_SEED, "5")
    return check(PIECE, reference(PIECE))._repr_mimebundle_()


def test_while_grading_the_kernel_answers_and_does_not_judge(answered):
    assert set(answered) == {"text/plain", OBSERVATIONS}
    with pytest.raises(ValueError):
        float(answered["text/plain"])  # nothing that nbgrader could take for points


def test_the_answer_is_for_the_graders_seed(answered):
    bundle = json.loads(json.dumps(answered[OBSERVATIONS]))
    assert judge(find(PIECE), bundle, 5).passed
    assert judge(find(PIECE), bundle, 6).points == 0


def test_the_answer_does_not_hold_what_is_right(answered, monkeypatch):
    monkeypatch.setenv(GRADING_SEED, "5")
    wrong = check(PIECE, lambda x: (x.mean() + 1, x.var() + 1))._repr_mimebundle_()[OBSERVATIONS]
    arrays = [
        v["array"] for e in answered[OBSERVATIONS]["scenarios"].values() for v in e["seen"].values() if "array" in v
    ]
    assert all(base64.b64decode(a) for a in arrays)
    assert not any(array in json.dumps(wrong) for array in arrays)


# --- releases ---------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A student edition of release "abc"."""
    (tmp_path / "release.json").write_text('{"problem_sets": {"ps1-algorithm": "abc"}}')
    monkeypatch.setattr("course_lib.checks.release.resources.files", lambda package: tmp_path)


def test_a_notebook_of_the_installed_release_runs(installed):
    expect_release("ps1-algorithm", "abc")


def test_a_notebook_of_another_release_is_stopped_and_told_what_to_do(installed):
    with pytest.raises(ImportError, match=r"release xyz of ps1-algorithm, .* to abc: .* pip install --force-reinstall"):
        expect_release("ps1-algorithm", "xyz")


def test_the_instructors_tree_takes_any_release():
    expect_release("ps1-algorithm", "xyz")
