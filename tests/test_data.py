"""The chapters' data: shapes, ranges, the same split for the same seed, and what shifts do to a picture."""

import numpy as np
import pytest
import torch

from course_lib.data import SHIFTS, blurred, digits, inverted, loaders, minibatches, noisy, rotated
from tests.devices import DEVICES


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


# --- loaders ----------------------------------------------------------------------------------------------------


def test_training_batches_are_full_and_shuffled_anew():
    training, _ = loaders(digits(), 100)
    epochs = [list(training) for _ in range(2)]
    assert {len(x) for epoch in epochs for x, _ in epoch} == {100}
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_test_batches_are_everything_in_order():
    data = digits()
    _, test = loaders(data, 100)
    assert torch.equal(torch.cat([x for x, _ in test]), data.x_test)
    assert torch.equal(torch.cat([y for _, y in test]), data.y_test)


def test_images_keep_their_labels():
    data = digits()
    x, labels = next(iter(loaders(data, 10)[0]))
    for image, label in zip(x, labels, strict=True):
        assert label in data.y_train[(data.x_train == image).all(1)]


def test_the_seed_decides_the_shuffling():
    first, again, other = (next(iter(loaders(digits(), 50, seed=seed)[0]))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("size", [0, 1348])
def test_a_batch_size_that_no_batch_fills_is_refused(size):
    with pytest.raises(ValueError, match=f"expected 1 ≤ batch_size ≤ 1347, got {size}"):
        loaders(digits(), size)


# --- shifts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_keeps_shape_dtype_device_and_range_and_its_input(name, images, dtype, device):
    x = digits(images=images).x_test[:20].to(device, dtype)
    before = x.clone()
    y = SHIFTS[name](x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert y.min() >= -1e-6 and y.max() <= 1 + 1e-6
    assert torch.equal(x, before) and not torch.allclose(y, x, atol=0.1)


@pytest.mark.parametrize("name", SHIFTS)
def test_rows_and_images_are_shifted_alike(name):
    x = digits(images=True).x_test[:5]
    assert torch.equal(SHIFTS[name](x).flatten(1), SHIFTS[name](x.flatten(1)))


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_is_shifted_the_same_alone(name):
    x = digits().x_test[:5]
    torch.testing.assert_close(SHIFTS[name](x)[:1], SHIFTS[name](x[:1]))


def test_inverting_twice_gives_the_image_back():
    x = digits().x_test
    torch.testing.assert_close(inverted(inverted(x)), x)
    assert inverted(x).mean() == pytest.approx(1 - x.mean().item())


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_a_blurred_dot_is_a_gaussian(sigma):
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 1.0
    rows, columns = np.mgrid[:8, :8]
    want = np.exp(-((rows - 3) ** 2 + (columns - 4) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    within = (abs(rows - 3) <= 3 * sigma) & (abs(columns - 4) <= 3 * sigma)
    got = blurred(x, sigma)[0, 0].numpy()
    # The sum over pixels is not quite the integral, least of all for a narrow Gaussian.
    np.testing.assert_allclose(got[within], want[within], rtol=0.06 if sigma < 1 else 0.01)
    assert (got[~within] < 0.02 * got.max()).all()


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3), (270, 3)])
def test_quarter_turns_are_exact_and_counter_clockwise(degrees, turns):
    x = digits(images=True).x_test[:5]
    torch.testing.assert_close(rotated(x, degrees), x.rot90(turns, (2, 3)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("degrees", [10, 30, 45, 200, -60])
def test_a_spot_goes_round_by_the_angle(degrees):
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3:5, 5:7] = 0.25  # two pixels to the right of the middle
    turned = rotated(x, degrees)[0, 0]
    right = (turned * (torch.arange(8) - 3.5)).sum() / turned.sum()
    up = (turned * (3.5 - torch.arange(8))[:, None]).sum() / turned.sum()
    want = 2 * np.cos(np.deg2rad(degrees)), 2 * np.sin(np.deg2rad(degrees))
    assert (right.item(), up.item()) == pytest.approx(want, abs=0.1)


def test_noise_has_the_deviation_that_was_asked_for():
    noise = noisy(torch.full((500, 64), 0.5), 0.05) - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise.mean().abs() < 1e-3


def test_the_seed_decides_the_noise():
    x = torch.full((3, 64), 0.5)
    assert torch.equal(noisy(x, seed=1), noisy(x, seed=1))
    assert not torch.equal(noisy(x, seed=1), noisy(x, seed=2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inverted(torch.zeros(3, 63)), r"expected digits of shape \(N, 64\) or \(N, 1, 8, 8\), got \(3, 63\)"),
        (lambda: blurred(torch.zeros(3, 3, 8, 8)), r"got \(3, 3, 8, 8\)"),
        (lambda: rotated(torch.zeros(64)), r"got \(64,\)"),
        (lambda: noisy([0.0]), r"got \(\)"),
        (lambda: blurred(torch.zeros(1, 64), 0.0), "expected sigma > 0, got 0.0"),
        (lambda: noisy(torch.zeros(1, 64), -1.0), "expected std ≥ 0, got -1.0"),
    ],
)
def test_what_cannot_be_shifted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
