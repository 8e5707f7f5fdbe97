"""The words for what is wrong."""

import numpy as np
import pytest

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from course_lib.misconceptions import edit, reference

STATS, FORWARD = find("algorithm.batch_stats"), find("algorithm.batch_norm_forward")
IDENTITY = find("algorithm.recover_identity")


def row_of(piece, impl, group=0):
    return judge(piece, observe(piece, impl, 0), 0).rows[group]


@pytest.mark.parametrize(
    ("result", "message", "expected", "got"),
    [
        (
            "raise KeyError('c')",
            "raised KeyError: 'c' (line 6 of batch_stats: raise KeyError('c'))",
            "no exc",
            "KeyError",
        ),
        ("raise TypeError", "raised TypeError (line 6 of batch_stats: raise TypeError)", "no exception", "TypeError"),
        ("raise SystemExit(1)", "raised SystemExit: 1 (line 6", "no exception", "SystemExit"),
        ("return None", "expected a tuple (mean, var) to be returned, got None: is there a return?", "", ""),
        ("return mean", "expected a tuple (mean, var) to be returned, got ndarray of shape (", "", ""),
        ("return mean, var, x", "expected a tuple (mean, var) to be returned, got 3 values", "", ""),
        ("return mean * np.nan, var", "mean: nan where a number should be in channel 0", "", "nan"),
        ("return mean, var / np.array(0)", "var: inf where a number should be in channel 0", "", "inf"),
        ("return mean, var + 1", "var: wrong value in channel 0 (largest error 1, tolerance", "", ""),
        ("return mean[:, None], var", "mean: wrong shape", "shape (", ", 1)"),
        ("return mean, var.astype('f2')", "var: wrong dtype", "float64", "float16"),
        ("return mean, var.astype(int)", "var: wrong dtype", "float64", "int64"),
        ("return mean, None", "var: not an array", "float64 array of shape (", "None"),
        ("return mean, var.tolist()", "var: not an array", "float64 array of shape (", "list"),
        ("return 'mean', var", "mean: not an array", "float64 array of shape (", "mean"),
        ("return mean, 10**5000", "var: not an array", "float64 array of shape (", "int"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_each_kind_of_wrong_answer_has_its_own_words(stats, result, message, expected, got):
    row = row_of(STATS, stats(result))
    assert row.points == 0
    assert row.message.startswith(message)
    assert expected in row.expected and got in row.got


def test_a_wrong_value_is_shown_beside_the_right_one():
    row = row_of(IDENTITY, lambda mean, var, eps=1e-5: (2 * np.sqrt(var + eps), mean))
    assert float(row.got) == pytest.approx(2 * float(row.expected), rel=1e-5)


def test_a_wrong_value_says_its_channel(stats):
    source = "mean[-1] += 1; return mean, var"
    channels = len(reference(STATS.name)(np.ones((2, 3)))[0])
    row = row_of(STATS, stats(source))
    assert f"in channel {channels - 1}" in row.message or f"in channel {channels}" in row.message


def test_a_wrong_value_in_a_map_says_where():
    def batch_norm_forward(x, gamma, beta, eps=1e-5):
        y, cache = reference(FORWARD.name)(x, gamma, beta, eps)
        y[1, 2] += 1
        return y, cache

    message = row_of(FORWARD, batch_norm_forward).message
    assert "y: wrong value in channel 2, first at [1, 2" in message


def test_a_changed_input_is_named_before_the_values_are(stats):
    row = row_of(STATS, stats("x += 0.5; return mean, var"), -1)
    assert row.message.startswith("modified in place: x. Work on a copy [asked with float32: x (")
    assert (row.expected, row.got) == ("the inputs as they were", "changed inputs")


def test_a_missing_error_is_named():
    impl = edit(STATS.name, [("if rows.shape[1] < 2:", "if False:")])
    row = row_of(STATS, impl, -1)
    assert row.message.startswith("error for an input of shape (1, ")
    assert (row.expected, row.got) == ("ValueError", "no error")
