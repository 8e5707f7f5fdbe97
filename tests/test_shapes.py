"""What every topic asks of its inputs."""

import numpy as np
import pytest

from course_lib.shapes import expect_input, expect_per_channel


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_the_number_of_channels_comes_back(rank, dtype):
    assert expect_input(np.zeros((4, 3, 2, 2, 2)[:rank], dtype)) == 3


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_an_empty_batch_is_an_input(shape):
    assert expect_input(np.zeros(shape)) == 3


def test_the_wanted_number_of_channels_is_taken():
    assert expect_input(np.zeros((2, 64)), 64) == 64


def test_another_number_of_channels_is_refused_with_both():
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, \.\.\.\) with C=64, got \(8, 32, 7, 7\)"):
        expect_input(np.zeros((8, 32, 7, 7)), 64)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (None, "NoneType"),
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((2, 0)), r"\(2, 0\)"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), ">f8"), ">f8"),
    ],
)
def test_the_error_calls_the_input_by_its_name_and_says_what_came(x, got):
    with pytest.raises(ValueError, match=f"expected dy .*, got {got}"):
        expect_input(x, name="dy")


def test_one_value_per_channel_comes_back_as_an_array():
    got = expect_per_channel([1.0, 2.0], 2, name="gamma")
    assert isinstance(got, np.ndarray) and got.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("v", [1.0, [1.0], [[1.0, 2.0]], [1.0, 2.0, 3.0]])
def test_another_shape_than_one_value_per_channel_is_refused(v):
    with pytest.raises(ValueError) as error:
        expect_per_channel(v, 2, name="gamma")
    assert f"expected gamma of shape (2,), one value per channel, got {np.shape(v)}" in str(error.value)
