"""Problem set 1: what is asked of the four pieces of `course_lib.algorithm`."""

import numpy as np

from course_lib.checks.piece import Piece, named, raised

# Small tensors with unequal axes: a statistic over the wrong axes cannot come out with the right shape by chance.
# `large mean` is the float32 case of the contract: mean 1e4 or −1e4, std about 1, 512 to 640 values per channel. There
# an honest mean is off by some 1e-2 (so are x̂ and y), an honest variance by 1e-3, and one pass by 0.1 or more. The
# spreads are not 1, where variance and standard deviation are the same, nor so large that n − 1 shows in the variance.
FAR_STD = (0.5, 0.8, 1.2)
LARGE_MEAN = {"mean": 0.2, "var": 1e-2, "y": 0.2}


def _table(case):
    """(N, C) with more rows than columns, channels of different mean and spread."""
    n, c = case.integer(5, 8), case.integer(3, 4)
    return case.draw((n, c), case.uniform(-3, 3, c), case.uniform(1, 3, c))


def _maps(case):
    """(N, C, H, W), every axis of another length."""
    n, c, h, w = (2 + k for k in _shuffled(case))
    mean, std = case.uniform(-3, 3, (c, 1, 1)), case.uniform(1, 3, (c, 1, 1))
    return case.draw((n, c, h, w), mean, std)


def _shuffled(case):
    rest, order = [0, 1, 2, 3], []
    while rest:
        order.append(rest.pop(case.integer(0, len(rest) - 1)))
    return order


def _other_ranks(case):
    """{what it is: array}: (N, C, L) and (N, C, D, H, W)."""
    return {
        words: case.draw(shape, case.uniform(-3, 3, (shape[1],) + (1,) * (len(shape) - 2)), 2.0)
        for words, shape in (("sequences", (3, 4, 5)), ("volumes", (2, 3, 2, 4, 3)))
    }


def _each(found):
    """{what of which: value} of {which: {what: value}}."""
    return {f"{name} of {words}": value for words, result in found.items() for name, value in result.items()}


def _one_channel(case):
    """{what it is: array}: a table and maps of a single channel, whose axis has length 1."""
    return {
        words: case.draw(shape, case.uniform(-3, 3), 2.0)
        for words, shape in (("one column", (case.integer(4, 6), 1)), ("maps of one channel", (3, 1, 2, 4)))
    }


def _far(case, shape):
    """Three channels with means around 1e4 in size, of both signs."""
    wide = (3,) + (1,) * (len(shape) - 2)
    mean = 1e4 * case.uniform(0.9, 1.1, 3) * [1, -1, case.choice((1, -1))]
    return case.draw(shape, mean.reshape(wide), np.reshape(FAR_STD, wide))


def _far_table(case):
    return _far(case, (case.integer(512, 640), 3))


def _far_maps(case):
    return _far(case, (4, 3, case.integer(12, 13), 12))


def _dtypes(result):
    return {f"dtype of {name}": str(getattr(part, "dtype", type(part).__name__)) for name, part in result.items()}


# --- batch_stats ------------------------------------------------------------------------------------------------

stats = Piece("algorithm.batch_stats", call="batch_stats(x) → (mean, var)")


def _stats(impl, x):
    return named(impl(x), "mean", "var")


def _in_dtype_of(case, result):
    """What a scenario about accuracy compares: its dtype is another group's business."""
    return {name: np.asarray(value, dtype=case.dtype) for name, value in result.items()}


table = stats.group("mean and variance of a table (N, C)", points=0.5)


@table.scenario()
def stats_of_table(impl, case):
    return _stats(impl, case.given(_table(case), "x"))


maps = stats.group("one mean and variance per channel at any rank", points=1)


@maps.scenario()
def stats_of_maps(impl, case):
    return _stats(impl, case.given(_maps(case), "x"))


@maps.scenario()
def stats_of_other_ranks(impl, case):
    return _each({words: _stats(impl, case.given(x, words)) for words, x in _other_ranks(case).items()})


@maps.scenario()
def stats_of_one_image(impl, case):
    # N = 1, and yet enough values per channel.
    shape = (1, case.integer(2, 4), 6, 5)
    return _stats(impl, case.array(shape, mean=case.uniform(-3, 3), std=2.0))


@maps.scenario()
def stats_of_two_values(impl, case):
    # As few as can be.
    c = case.integer(2, 5)
    inputs = (case.array(shape, case.uniform(-3, 3), 2.0) for shape in ((2, c), (1, c, 2), (2, c, 1, 1)))
    return _each({f"an input of shape {x.shape}": _stats(impl, x) for x in inputs})


@maps.scenario()
def stats_of_one_channel(impl, case):
    return _each({words: _stats(impl, case.given(x, words)) for words, x in _one_channel(case).items()})


_FAR = {"sequences": (24, 3, 24), "volumes": (6, 3, 4, 5, 5)}

far = stats.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=1)


@far.scenario(dtypes=("float32",), within=LARGE_MEAN, rounding=True)
def stats_far_from_zero(impl, case):
    return _in_dtype_of(case, _stats(impl, case.given(_far_table(case), "x")))


@far.scenario(dtypes=("float32",), within=LARGE_MEAN, rounding=True)
def stats_of_maps_far_from_zero(impl, case):
    return _in_dtype_of(case, _stats(impl, case.given(_far_maps(case), "x")))


@far.scenario(
    dtypes=("float32",), within={f"{k} of {x}": v for k, v in LARGE_MEAN.items() for x in _FAR}, rounding=True
)
def stats_of_other_ranks_far_from_zero(impl, case):
    found = {words: _stats(impl, case.given(_far(case, shape), words)) for words, shape in _FAR.items()}
    return _in_dtype_of(case, _each(found))


contract = stats.group("same dtype out, input untouched, too few values refused", points=0.5)


@contract.scenario(dtypes=("float32",))
def stats_keep_float32(impl, case):
    result = named(impl(x=case.given(_table(case), "x")), "mean", "var")
    return {**_in_dtype_of(case, {"mean": result["mean"]}), **_dtypes(result), "inputs changed": case.changed()}


@contract.scenario(dtypes=("float32",))
def stats_keep_float32_of_maps(impl, case):
    # The dtypes alone: which axes were reduced over is another group's business.
    return {**_dtypes(_stats(impl, case.given(_maps(case), "x"))), "inputs changed": case.changed()}


@contract.scenario()
def stats_need_two_values(impl, case):
    c = case.integer(2, 5)
    shapes = ((1, c), (1, c, 1), (1, c, 1, 1), (1, c, 1, 1, 1), (0, c), (0, c, 3, 2), (4, c, 0))
    return {f"error for an input of shape {shape}": raised(impl, case.array(shape)) for shape in shapes}


# --- batch_norm_forward -----------------------------------------------------------------------------------------

forward = Piece("algorithm.batch_norm_forward", call="batch_norm_forward(x, gamma, beta, eps=1e-5) → (y, cache)")


def _forward(impl, case, x, scales=(0.5, 2), shifts=(-2, 2), **eps):
    """y and the three parts of the cache, for random gamma and beta between these limits."""
    c = x.shape[1]
    gamma, beta = case.given(case.uniform(*scales, c), "gamma"), case.given(case.uniform(*shifts, c), "beta")
    result = named(impl(case.given(x, "x"), gamma=gamma, beta=beta, **eps), "y", "cache")
    return result["y"], result["cache"]


output = forward.group("y of tables and maps, with a large eps and with the default", points=1)


@output.scenario()
def forward_of_table(impl, case):
    # All by position.
    x = _table(case)
    c = x.shape[1]
    gamma, beta = case.given(case.uniform(0.5, 2, c), "gamma"), case.given(case.uniform(-2, 2, c), "beta")
    result = impl(case.given(x, "x"), gamma, beta, case.number("eps", 0.5, 1))
    return {"y": named(result, "y", "cache")["y"]}


@output.scenario()
def forward_of_maps(impl, case):
    y, _ = _forward(impl, case, _maps(case), eps=case.number("eps", 0.5, 1))
    return {"y": y}


@output.scenario()
def forward_with_default_eps(impl, case):
    # So small a spread that the default eps shows.
    return {f"y of {words}": _forward(impl, case, 0.005 * x)[0] for words, x in _other_ranks(case).items()}


cached = forward.group("cache = (x_hat, gamma, invstd)", points=1)


@cached.scenario()
def forward_cache(impl, case):
    _, cache = _forward(impl, case, _maps(case), eps=case.number("eps", 0.5, 1))
    return named(cache, "x_hat", "gamma", "invstd")


@cached.scenario()
def forward_cache_at_other_ranks(impl, case):
    inputs, seen = {"a table": _table(case), **_other_ranks(case), **_one_channel(case)}, {}
    for words, x in inputs.items():
        _, cache = _forward(impl, case, x, eps=case.number("eps", 0.5, 1))
        seen[words] = named(cache, "x_hat", "gamma", "invstd")
    return _each(seen)


far = forward.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.5)


@far.scenario(dtypes=("float32",), within=LARGE_MEAN, rounding=True)
def forward_far_from_zero(impl, case):
    # gamma and beta so far apart, and from 0 and 1, that no mistake with them hides in the wide tolerance.
    y, _ = _forward(impl, case, _far_table(case), scales=(0.4, 0.6), shifts=(-3, -2))
    return _in_dtype_of(case, {"y": y})


contract = forward.group("same dtype out, inputs untouched", points=0.5)


@contract.scenario(dtypes=("float32",))
def forward_keeps_float32(impl, case):
    y, cache = _forward(impl, case, _table(case))
    of_table = _dtypes({"y": y, **named(cache, "x_hat", "gamma", "invstd")})
    y, cache = _forward(impl, case, _maps(case))
    dtypes = _dtypes({"y": y, **named(cache, "x_hat", "gamma", "invstd")})
    dtypes |= {f"{name} of a table": dtype for name, dtype in of_table.items()}
    axes = (0, *range(2, np.ndim(y)))
    # The mean of y is beta whatever the variance was: this group is about the contract, not about the formula.
    mean_of_y = _in_dtype_of(case, {"mean of y": np.mean(y, axis=axes)})
    return {**mean_of_y, **dtypes, "inputs changed": case.changed()}


# --- batch_norm_backward ----------------------------------------------------------------------------------------

backward = Piece("algorithm.batch_norm_backward", call="batch_norm_backward(dy, cache) → (dx, dgamma, dbeta)")


def _backward(impl, case, x):
    """Gradients for a cache that does not come from the student's forward."""
    axes, c = (0, *range(2, x.ndim)), x.shape[1]
    # As a forward with a large eps leaves it: Σx̂² is not n, and the formula divides by n.
    invstd = 1 / np.sqrt(x.var(axes, keepdims=True) + case.uniform(0.5, 1))
    x_hat = (x - x.mean(axes, keepdims=True)) * invstd
    gamma = case.given(case.uniform(0.5, 2, c), "gamma")
    cache = (case.given(x_hat, "x_hat"), gamma, case.given(invstd.ravel(), "invstd"))
    # A mean that is not zero, and a slope along x_hat: both coupling terms matter.
    dy = case.given(case.draw(x.shape, 1.0) + 0.7 * x_hat, "dy")
    return named(impl(dy, cache=cache), "dx", "dgamma", "dbeta")


through = backward.group("dx of tables and maps", points=1.5)


@through.scenario()
def backward_of_table(impl, case):
    return {"dx": _backward(impl, case, _table(case))["dx"]}


@through.scenario()
def backward_of_maps(impl, case):
    return {"dx": _backward(impl, case, _maps(case))["dx"]}


@through.scenario()
def backward_of_other_ranks(impl, case):
    return {f"dx of {words}": _backward(impl, case, x)["dx"] for words, x in _other_ranks(case).items()}


parameters = backward.group("dgamma and dbeta", points=1)


@parameters.scenario()
def parameter_gradients_of_table(impl, case):
    result = _backward(impl, case, _table(case))
    return {"dgamma": result["dgamma"], "dbeta": result["dbeta"]}


@parameters.scenario()
def parameter_gradients_of_maps(impl, case):
    result = _backward(impl, case, _maps(case))
    return {"dgamma": result["dgamma"], "dbeta": result["dbeta"]}


@parameters.scenario()
def parameter_gradients_of_other_ranks(impl, case):
    found = {words: _backward(impl, case, x) for words, x in _other_ranks(case).items()}
    return _each({words: {name: result[name] for name in ("dgamma", "dbeta")} for words, result in found.items()})


@parameters.scenario()
def parameter_gradients_of_one_channel(impl, case):
    found = {words: _backward(impl, case, x) for words, x in _one_channel(case).items()}
    return _each({words: {name: result[name] for name in ("dgamma", "dbeta")} for words, result in found.items()})


contract = backward.group("same dtype out, inputs untouched", points=0.5)


@contract.scenario(dtypes=("float32",))
def backward_keeps_float32(impl, case):
    result = _backward(impl, case, _table(case))
    dbeta = _in_dtype_of(case, {"dbeta": result["dbeta"]})
    of_maps = {f"{name} of maps": dtype for name, dtype in _dtypes(_backward(impl, case, _maps(case))).items()}
    return {**dbeta, **_dtypes(result), **of_maps, "inputs changed": case.changed()}


# --- recover_identity -------------------------------------------------------------------------------------------

identity = Piece("algorithm.recover_identity", call="recover_identity(mean, var, eps=1e-5) → (gamma, beta)")


def _identity(impl, case, scale, *eps):
    c = case.integer(2, 5)
    mean, var = case.array((c,), std=2.0, name="mean"), case.given(scale * case.uniform(0.5, 4, c), "var")
    result = named(impl(mean, var, *eps) if eps else impl(mean=mean, var=var), "gamma", "beta")
    return {**result, "inputs changed": case.changed()}


undone = identity.group("gamma and beta that undo the normalisation", points=1)


@undone.scenario()
def identity_with_given_eps(impl, case):
    return _identity(impl, case, 1.0, case.number("eps", 0.5, 1))


@undone.scenario(dtypes=("float32",))
def identity_with_default_eps(impl, case):
    # Variances of the size of the default eps: forgetting it shows.
    return _identity(impl, case, 1e-5)
