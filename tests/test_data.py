"""The chapters' data: shapes, ranges, and the same split for the same seed."""

import numpy as np
import pytest
import torch

from course_lib.data import digits, minibatches


@pytest.mark.parametrize(("images", "shape"), [(False, (64,)), (True, (1, 8, 8))])
def test_digits_have_the_shape_that_was_asked_for(images, shape):
    data = digits(images=images)
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == shape
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)


def test_digits_are_split_without_loss():
    data = digits(test_size=100)
    assert (len(data.x_train), len(data.x_test)) == (1697, 100)
    counts = torch.bincount(torch.cat([data.y_train, data.y_test]), minlength=10)
    assert counts.sum() == 1797
    assert counts.min() > 170


def test_pixels_lie_between_zero_and_one():
    x = digits().x_train
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)


def test_images_and_rows_are_the_same_pixels():
    assert torch.equal(digits(images=True).x_test.flatten(1), digits().x_test)


def test_the_seed_decides_the_split():
    assert torch.equal(digits(seed=1).x_train, digits(seed=1).x_train)
    assert not torch.equal(digits(seed=1).x_train, digits(seed=2).x_train)


@pytest.mark.parametrize("test_size", [0, 1797, 5000])
def test_an_empty_part_is_refused(test_size):
    with pytest.raises(ValueError, match="expected 0 < test_size < 1797"):
        digits(test_size=test_size)


def test_an_epoch_visits_every_sample_once():
    seen = torch.cat(list(minibatches(12, 4, steps=3)))
    assert sorted(seen.tolist()) == list(range(12))


def test_epochs_are_shuffled_anew():
    first, second = minibatches(50, 50, steps=2)
    assert not torch.equal(first, second)


def test_every_batch_is_full():
    assert [len(i) for i in minibatches(10, 4, steps=5)] == [4] * 5


def test_the_seed_decides_the_order():
    assert np.array_equal(next(minibatches(20, 5, 1, seed=3)), next(minibatches(20, 5, 1, seed=3)))
    assert not np.array_equal(next(minibatches(20, 5, 1, seed=3)), next(minibatches(20, 5, 1, seed=4)))


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="expected 1 ≤ size ≤ 10"):
        next(minibatches(10, size, steps=1))
