"""The reference of topic 1 against torch in float64, finite differences, and what it promises beyond torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import batch_norm

from course_lib.algorithm import batch_norm_backward, batch_norm_forward, batch_stats, recover_identity

SHAPES = [(7, 3), (4, 3, 5), (3, 4, 5, 2), (2, 3, 2, 4, 3)]
DTYPES = [np.float32, np.float64]
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def axes_of(x):
    return (0, *range(2, x.ndim))


def wide(v, x):
    """(C,) so that it broadcasts against x."""
    return v.reshape(1, -1, *(1,) * (x.ndim - 2))


def drawn(shape, seed=0, mean=1.0, std=2.0):
    """x, gamma, beta and dy in float64."""
    rng = np.random.default_rng(seed)
    x, dy = mean + std * rng.standard_normal(shape), rng.standard_normal(shape)
    return x, rng.uniform(0.5, 2, shape[1]), rng.uniform(-2, 2, shape[1]), dy


def close(got, want, dtype=np.float64, ulps=64):
    """Equal up to some units in the last place of the largest value, and in the right dtype."""
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * np.finfo(dtype).eps * (np.abs(want).max() or 1))


# --- against torch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_stats_equal_torchs(shape):
    x, *_ = drawn(shape)
    var, mean = torch.var_mean(torch.from_numpy(x), dim=axes_of(x), correction=0)
    got = batch_stats(x)
    close(got[0], mean.numpy())
    close(got[1], var.numpy())


@pytest.mark.parametrize("eps", [1e-5, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_torchs(shape, eps):
    x, gamma, beta, _ = drawn(shape)
    want = batch_norm(*map(torch.from_numpy, (x,)), None, None, *map(torch.from_numpy, (gamma, beta)), True, 0.1, eps)
    close(batch_norm_forward(x, gamma, beta, eps)[0], want.numpy())


@pytest.mark.parametrize("eps", [1e-5, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_equals_torchs_autograd(shape, eps):
    x, gamma, beta, dy = drawn(shape)
    leaves = [torch.from_numpy(v).requires_grad_() for v in (x, gamma, beta)]
    y = batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, 0.1, eps)
    want = torch.autograd.grad(y, leaves, torch.from_numpy(dy))
    got = batch_norm_backward(dy, batch_norm_forward(x, gamma, beta, eps)[1])
    for one, other in zip(got, want, strict=True):
        close(one, other.numpy(), ulps=256)


def test_default_eps_is_torchs():
    x, gamma, beta, _ = drawn((6, 3), std=0.01)
    close(batch_norm_forward(x, gamma, beta)[0], batch_norm_forward(x, gamma, beta, torch.nn.BatchNorm1d(3).eps)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_is_x_hat_gamma_invstd(shape):
    x, gamma, beta, _ = drawn(shape)
    _, (x_hat, cached_gamma, invstd) = batch_norm_forward(x, gamma, beta, 0.5)
    std = np.sqrt(x.var(axis=axes_of(x)) + 0.5)
    close(x_hat, (x - wide(x.mean(axis=axes_of(x)), x)) / wide(std, x))
    close(cached_gamma, gamma)
    close(invstd, 1 / std)


# --- finite differences -----------------------------------------------------------------------------------------


def slope(f, v, index, h=1e-5):
    """Central difference of f() in v[index]."""
    old = v[index]
    v[index] = old + h
    above = f()
    v[index] = old - h
    below = f()
    v[index] = old
    return (above - below) / (2 * h)


@pytest.mark.parametrize("which", ["dx", "dgamma", "dbeta"])
@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 2), (2, 2, 2, 2)])
def test_backward_equals_finite_differences(shape, which):
    x, gamma, beta, dy = drawn(shape)
    variable = {"dx": x, "dgamma": gamma, "dbeta": beta}[which]

    def loss():
        return float((dy * batch_norm_forward(x, gamma, beta, 0.1)[0]).sum())

    gradients = batch_norm_backward(dy, batch_norm_forward(x, gamma, beta, 0.1)[1])
    got = dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=True))[which]
    want = np.array([slope(loss, variable, index) for index in np.ndindex(variable.shape)]).reshape(variable.shape)
    # h² of truncation and eps/h of rounding, both about 1e-10.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)


# --- invariances ------------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from(SHAPES), st.floats(-100, 100))
def test_a_shift_of_a_channel_does_not_change_y(seed, shape, shift):
    x, gamma, beta, _ = drawn(shape, seed)
    np.testing.assert_allclose(
        batch_norm_forward(x + shift, gamma, beta)[0], batch_norm_forward(x, gamma, beta)[0], rtol=0, atol=1e-11
    )


@few
@given(seeds, st.sampled_from(SHAPES), st.floats(0.01, 100))
def test_a_scale_of_a_channel_does_not_change_y(seed, shape, scale):
    # eps is in units of x², so it is scaled too.
    x, gamma, beta, _ = drawn(shape, seed)
    scaled = batch_norm_forward(scale * x, gamma, beta, scale**2 * 1e-3)[0]
    np.testing.assert_allclose(scaled, batch_norm_forward(x, gamma, beta, 1e-3)[0], rtol=0, atol=1e-11)


@few
@given(seeds, st.sampled_from(SHAPES))
def test_y_has_mean_beta(seed, shape):
    x, gamma, beta, _ = drawn(shape, seed)
    y, _ = batch_norm_forward(x, gamma, beta)
    np.testing.assert_allclose(y.mean(axis=axes_of(x)), beta, rtol=0, atol=1e-13)


@few
@given(seeds, st.sampled_from(SHAPES))
def test_y_has_standard_deviation_gamma_without_eps(seed, shape):
    x, gamma, beta, _ = drawn(shape, seed)
    y, _ = batch_norm_forward(x, gamma, beta, 0.0)
    np.testing.assert_allclose(y.std(axis=axes_of(x)), gamma, rtol=1e-12)


@few
@given(seeds, st.sampled_from(SHAPES))
def test_dx_sums_to_zero_in_every_channel(seed, shape):
    x, gamma, beta, dy = drawn(shape, seed)
    dx, *_ = batch_norm_backward(dy, batch_norm_forward(x, gamma, beta)[1])
    np.testing.assert_allclose(dx.sum(axis=axes_of(x)), 0, atol=1e-12 * np.abs(dx).sum())


@few
@given(seeds, st.sampled_from(SHAPES))
def test_dx_is_orthogonal_to_x_hat(seed, shape):
    # Exactly so for eps = 0: moving along x̂ is a change of scale, which the layer takes back.
    x, gamma, beta, dy = drawn(shape, seed)
    _, cache = batch_norm_forward(x, gamma, beta, 0.0)
    dx, *_ = batch_norm_backward(dy, cache)
    np.testing.assert_allclose((dx * cache[0]).sum(axis=axes_of(x)), 0, atol=1e-12 * np.abs(dx).sum())


@few
@given(seeds, st.sampled_from(SHAPES))
def test_recovered_identity_gives_x_back(seed, shape):
    x, *_ = drawn(shape, seed)
    gamma, beta = recover_identity(*batch_stats(x), eps=0.1)
    close(batch_norm_forward(x, gamma, beta, 0.1)[0], x)


# --- accuracy ---------------------------------------------------------------------------------------------------


def far(dtype, mean, shape=(64, 3, 8), seed=0):
    """Data with a large mean, rounded to dtype; the truth is the closed form in long double on the rounded values."""
    x = drawn(shape, seed, mean=mean, std=1.0)[0].astype(dtype)
    exact = x.astype(np.longdouble)
    exact = exact - exact[:1, :, :1]  # keeps the truth accurate where long double is only a double
    return x, exact - exact.mean(axis=(0, 2), keepdims=True), exact.var(axis=(0, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [1e4, 1e5, 1e6])
def test_y_keeps_its_digits_when_the_mean_is_large(dtype, mean):
    x, centred, var = far(dtype, mean)
    want = centred / np.sqrt(var + 1e-5)[:, None]
    got = batch_norm_forward(x, np.ones(3, dtype), np.zeros(3, dtype))[0]
    close(got, want.astype(np.float64), dtype, ulps=8)


@pytest.mark.parametrize("mean", [1e7, 1e8])
def test_y_keeps_its_digits_in_float64_up_to_a_mean_of_1e8(mean):
    x, centred, var = far(np.float64, mean)
    got = batch_norm_forward(x, np.ones(3), np.zeros(3))[0]
    close(got, (centred / np.sqrt(var + 1e-5)[:, None]).astype(np.float64), ulps=8)


@pytest.mark.parametrize(
    ("dtype", "mean"), [(np.float32, 1e4), (np.float32, 1e6), (np.float64, 1e4), (np.float64, 1e8)]
)
def test_variance_keeps_its_digits_when_the_mean_is_large(dtype, mean):
    x, _, var = far(dtype, mean)
    close(batch_stats(x)[1], var.astype(np.float64), dtype, ulps=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_mean_is_right_to_the_last_place(dtype, mean):
    x, *_ = far(dtype, mean)
    close(batch_stats(x)[0], x.astype(np.longdouble).mean(axis=(0, 2)).astype(np.float64), dtype, ulps=1)


@few
@given(st.floats(-1e6, 1e6, width=32), st.sampled_from(DTYPES), st.floats(-10, 10, width=32))
def test_constant_channel_gives_exactly_beta(value, dtype, beta):
    x = np.full((5, 1, 3), value, dtype)
    y, _ = batch_norm_forward(x, np.full(1, 1.7, dtype), np.full(1, beta, dtype))
    assert (y == dtype(beta)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_stays_in_its_channel(value):
    x, gamma, beta, _ = drawn((4, 3, 5))
    clean = batch_norm_forward(x, gamma, beta)[0]
    x[2, 1, 3] = value
    spoilt = batch_norm_forward(x, gamma, beta)[0]
    assert np.isnan(spoilt[:, 1]).all()
    np.testing.assert_array_equal(spoilt[:, [0, 2]], clean[:, [0, 2]])


# --- contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_result_has_the_dtype_of_the_input(shape, dtype):
    x, gamma, beta, dy = (v.astype(dtype) for v in drawn(shape))
    y, cache = batch_norm_forward(x, gamma, beta)
    results = [*batch_stats(x), y, *cache, *batch_norm_backward(dy, cache), *recover_identity(*batch_stats(x))]
    assert {result.dtype for result in results} == {np.dtype(dtype)}


def test_float64_parameters_do_not_widen_float32_data():
    x, gamma, beta, dy = drawn((4, 3, 5))
    y, cache = batch_norm_forward(x.astype(np.float32), gamma, beta)
    gradients = batch_norm_backward(dy.astype(np.float32), tuple(part.astype(np.float64) for part in cache))
    assert {v.dtype for v in (y, *cache, *gradients)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_are_untouched(shape):
    inputs = x, gamma, beta, dy = drawn(shape)
    copies = [v.copy() for v in inputs]
    mean, var = batch_stats(x)
    _, cache = batch_norm_forward(x, gamma, beta)
    inputs, copies = [*inputs, mean, var, *cache], [*copies, mean.copy(), var.copy(), *(v.copy() for v in cache)]
    batch_norm_backward(dy, cache)
    recover_identity(mean, var)
    for now, then in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(now, then)


def test_results_do_not_share_memory_with_the_inputs():
    x, gamma, beta, _ = drawn((4, 3))
    mean, var = batch_stats(x)
    assert not np.shares_memory(recover_identity(mean, var)[1], mean)
    y, cache = batch_norm_forward(x, gamma, beta)
    assert not any(np.shares_memory(part, v) for part in (y, *cache) for v in (x, gamma, beta))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: x[:, ::-1].copy()[:, ::-1],
    ],
    ids=["fortran", "channels last", "strided", "negative stride"],
)
def test_memory_layout_does_not_matter(layout):
    x, gamma, beta, dy = drawn((3, 4, 5, 2))
    assert not layout(x).flags.c_contiguous
    y, cache = batch_norm_forward(x, gamma, beta)
    other_y, other_cache = batch_norm_forward(layout(x), gamma, beta)
    close(other_y, y)
    close(batch_norm_backward(layout(dy), other_cache)[0], batch_norm_backward(dy, cache)[0])


# --- errors -----------------------------------------------------------------------------------------------------


def forward_of(x, gamma=(1.0, 1.0), beta=(0.0, 0.0), eps=1e-5):
    return batch_norm_forward(x, np.asarray(gamma), np.asarray(beta), eps)


def backward_of(dy, x_hat=None, gamma=(1.0, 1.0), invstd=(1.0, 1.0)):
    return batch_norm_backward(dy, (dy if x_hat is None else x_hat, np.asarray(gamma), np.asarray(invstd)))


ok = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("f", [batch_stats, forward_of, backward_of])
@pytest.mark.parametrize(
    ("x", "expected", "got"),
    [
        ([[1.0, 2.0]], "NumPy array", "list"),
        (np.zeros(4), "0 to 3 spatial axes", "(4,)"),
        (np.zeros((2,) * 6), "0 to 3 spatial axes", "(2, 2, 2, 2, 2, 2)"),
        (np.zeros((3, 2), np.int64), "float32 or float64", "int64"),
        (np.zeros((3, 2), np.float16), "float32 or float64", "float16"),
        (np.zeros((3, 0)), "at least one channel", "(3, 0)"),
    ],
    ids=["list", "rank 1", "rank 6", "int", "half", "no channel"],
)
def test_an_input_of_another_kind_is_refused(f, x, expected, got):
    with pytest.raises(ValueError) as error:
        f(x)
    assert expected in str(error.value) and f"got {got}" in str(error.value)


@pytest.mark.parametrize("f", [batch_stats, forward_of])
@pytest.mark.parametrize(("shape", "n"), [((1, 2), 1), ((1, 2, 1, 1), 1), ((0, 2), 0), ((4, 2, 0), 0)])
def test_fewer_than_two_values_are_refused(f, shape, n):
    with pytest.raises(ValueError) as error:
        f(np.zeros(shape))
    assert f"expected at least 2 values per channel, got {n} in an input of shape {shape}" in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forward_of(ok, gamma=[1.0]), "expected gamma of shape (2,), one value per channel, got (1,)"),
        (lambda: forward_of(ok, beta=[[0.0, 0.0]]), "expected beta of shape (2,), one value per channel, got (1, 2)"),
        (lambda: forward_of(ok, eps=-1.0), "expected eps ≥ 0, got -1.0"),
        (lambda: backward_of(ok, x_hat=ok[:2]), "expected dy of the shape of the cached x_hat, (2, 2), got (3, 2)"),
        (lambda: backward_of(ok, gamma=1.0), "expected gamma of shape (2,), one value per channel, got ()"),
        (lambda: backward_of(ok, invstd=[1.0]), "expected invstd of shape (2,), one value per channel, got (1,)"),
        (lambda: recover_identity(np.ones(2), np.ones(3)), "expected mean and var of one shape, got (2,) and (3,)"),
        (lambda: recover_identity(np.ones(1), -np.ones(1)), "expected a variance that is not negative, got -1.0"),
        (lambda: recover_identity([5], [4]), "expected mean and var both in float32 or float64, got int64 and int64"),
        (lambda: recover_identity(np.ones(1), np.ones(1, np.float32)), "got float64 and float32"),
    ],
)
def test_errors_quote_expected_and_got(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
