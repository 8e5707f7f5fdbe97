"""Problem set 2: what is asked of the functions of `course_lib.running_stats`.

Groups are kept apart: a group observes what it is about in a way that other groups' mistakes leave alone. A momentum of
0.5 is the same in both conventions; variances as shares of their sum are the same with and without a common factor.
"""

import numpy as np
import torch

from course_lib.checks.piece import Piece, WrongReturn, named, raised
from course_lib.checks.running_stats_inputs import (
    FAR,
    HALVES,
    SINGLE,
    channels,
    dtype_as,
    far_values,
    flagged,
    kind,
    maps,
    plain_dtype,
    rearranged,
    sequences,
    shares,
    table,
    volumes,
)

# --- update_running_stats ---------------------------------------------------------------------------------------

update = Piece(
    "running_stats.update_running_stats", call="update_running_stats(running_mean, running_var, x, momentum) → None"
)


def _buffers(case, c):
    mean = case.tensor((c,), std=2.0, name="running_mean", dtype="float32", watch=False)
    var = case.given_tensor(case.uniform(0.5, 3, c), "running_var", dtype="float32", watch=False)
    return mean, var


def _updated(impl, case, values, momentum=0.5, dtype="float32"):
    """Both buffers after one update."""
    mean, var = _buffers(case, values.shape[1])
    impl(mean, var, case.given_tensor(values, "x", dtype=dtype), momentum)
    return {"running_mean": mean, "running_var": var}


moved = update.group("running mean and unbiased running variance, both in place", points=0.75)


@moved.scenario(dtypes=SINGLE)
def update_by_table(impl, case):
    return _updated(impl, case, table(case, channels(case)), case.number("momentum", 0.15, 0.4))


@moved.scenario(dtypes=SINGLE)
def update_by_maps(impl, case):
    return _updated(impl, case, maps(case, channels(case)), case.number("momentum", 0.15, 0.4))


@moved.scenario(dtypes=SINGLE)
def update_by_one_image(impl, case):
    # By name, for a change.
    c, momentum = channels(case), case.number("momentum", 0.6, 0.9)
    mean, var = _buffers(case, c)
    x, places = case.given_tensor(maps(case, c, n=1), "x"), (mean.data_ptr(), var.data_ptr())
    impl(running_mean=mean, running_var=var, x=x, momentum=momentum)
    # Whoever shares their memory, as a state dict does, is to see the new values.
    same = (mean.data_ptr(), var.data_ptr()) == places
    return {"running_mean": mean, "running_var": var, "buffers in the memory they had": same}


@moved.scenario(dtypes=SINGLE)
def update_by_two_values(impl, case):
    # As few as can be.
    return _updated(impl, case, case.draw((2, channels(case)), 1.0, 2.0), case.number("momentum", 0.15, 0.4))


@moved.scenario(dtypes=SINGLE)
def update_all_the_way_or_not(impl, case):
    seen = {}
    for momentum in (0.0, 1.0):
        found = _updated(impl, case, table(case, channels(case)), momentum)
        seen |= {f"{name} with momentum {momentum:.0f}": buffer for name, buffer in found.items()}
    return seen


ranks = update.group("sequences and volumes as well", points=0.25)


def _updated_by_rank(impl, case, values):
    mean, var = _buffers(case, 3)
    before = var.clone()
    impl(mean, var, rearranged(case.given_tensor(values, "x")), 0.5)
    # With a momentum of 0.5, whichever side it weighs, half of the old value is still there.
    return {"running_mean": mean, "what came into running_var, as shares of its sum": shares(var - 0.5 * before)}


@ranks.scenario(dtypes=SINGLE)
def update_by_sequences(impl, case):
    return _updated_by_rank(impl, case, sequences(case, 3))


@ranks.scenario(dtypes=SINGLE)
def update_by_volumes(impl, case):
    return _updated_by_rank(impl, case, volumes(case, 3))


contract = update.group("no autograd history, nothing returned, x untouched", points=0.5)


@contract.scenario(dtypes=SINGLE)
def update_by_output_of_a_network(impl, case):
    c = channels(case)
    mean, var = _buffers(case, c)
    x = case.given_tensor(maps(case, c), "x")
    # As a layer in front would hand it over: part of a graph, which the layers behind it need.
    output = x * torch.ones(c, 1, 1, dtype=x.dtype, requires_grad=True)
    result = impl(mean, var, output, 0.5)
    recorded, leaf = torch.is_grad_enabled(), x.clone().requires_grad_()
    impl(mean, var, leaf, 0.5)
    with torch.no_grad():
        impl(mean, var, x, 0.5)
        recorded_where_not = torch.is_grad_enabled()
    return {
        "running_mean": mean,
        "buffers with autograd history": flagged(running_mean=mean.requires_grad, running_var=var.requires_grad),
        "returned": "None" if result is None else type(result).__name__,
        "gradients are recorded afterwards": recorded,
        "gradients are recorded afterwards where they were not": recorded_where_not,
        "inputs changed": case.changed(),
        "x needs gradients afterwards": output.requires_grad and leaf.requires_grad,
    }


half = update.group("float32 statistics of float16 and bfloat16 input", points=0.25)


# Of the variance only that it is one: how many digits it has is seen at the mean.
_OF_HALVES = {f"running_mean after {half}": 2e-4 for half in HALVES} | {
    f"running_var after {half}": 0.3 for half in HALVES
}


@half.scenario(dtypes=SINGLE, within=_OF_HALVES, rounding=True)
def update_by_half_input(impl, case):
    seen = {}
    for dtype in HALVES:
        # Around 30, half precision is good for two digits after the point at best: 16 channels, so that one shows it.
        x = case.draw((case.integer(60, 80), 16), case.uniform(25, 35, 16), 2.0)
        for name, buffer in _updated(impl, case, x, dtype=dtype).items():
            seen |= {f"{name} after {dtype}": buffer, f"dtype of {name} after {dtype}": dtype_as(buffer, case)}
    return seen


@half.scenario(dtypes=SINGLE, within={f"running_mean after {half} maps": 2e-4 for half in HALVES}, rounding=True)
def update_by_half_maps(impl, case):
    seen = {}
    for dtype in HALVES:
        x = case.draw((4, 16, 4, case.integer(4, 5)), case.uniform(25, 35, (16, 1, 1)), 2.0)
        seen[f"running_mean after {dtype} maps"] = _updated(impl, case, x, dtype=dtype)["running_mean"]
    return seen


far = update.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.25)


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def update_far_from_zero(impl, case):
    return _updated(impl, case, far_values(case, (case.integer(512, 640), 3)))


# --- ema_after --------------------------------------------------------------------------------------------------

ema = Piece("running_stats.ema_after", call="ema_after(initial, value, momentum, steps) → float")

stands = ema.group("where the average stands after some steps", points=0.5)


@stands.scenario(within=1e-4)
def average_after_steps(impl, case):
    seen = {}
    for steps in (1, case.integer(3, 6), case.integer(9, 20)):
        initial, value = (case.number(name, low, high) for name, low, high in (("initial", -1, 1), ("value", 3, 6)))
        momentum = case.number("momentum", 0.1, 0.3)
        seen[f"ema_after({initial}, {value}, {momentum}, {steps})"] = _float(impl(initial, value, momentum, steps))
    return seen


@stands.scenario(within=1e-4)
def average_after_many_steps(impl, case):
    initial, value, momentum = case.number("initial", -9, -6), case.number("value", 3, 6), case.choice((0.01, 0.02))
    steps = case.integer(60, 90)
    return {f"ema_after({initial}, {value}, {momentum}, {steps})": _float(impl(initial, value, momentum, steps))}


extremes = ema.group("no step at all, and a memory that forgets everything: a Python float", points=0.25)


@extremes.scenario(within=1e-4)
def average_at_extremes(impl, case):
    initial, value = case.number("initial", -2, -1), case.number("value", 3, 6)
    still = impl(initial=initial, value=value, momentum=case.number("momentum", 0.2, 0.4), steps=0)
    gone = impl(initial, value, 1.0, 2)
    seen = {"after 0 steps": _float(still), "after 2 steps with momentum 1": _float(gone)}
    return {**seen, "a Python float": isinstance(still, float) and isinstance(gone, float)}


def _float(result):
    try:
        return float(result)
    except (TypeError, ValueError):
        raise WrongReturn(f"expected a number to be returned, got {type(result).__name__}") from None


# --- steps_to_forget --------------------------------------------------------------------------------------------

forget = Piece("running_stats.steps_to_forget", call="steps_to_forget(momentum, fraction) → int")

smallest = forget.group("the smallest number of updates", points=0.5)


def _forgotten(impl, case, past):
    """steps_to_forget where the exact, fractional number of steps is k − past: never near a whole number."""
    momentum, k = case.number("momentum", 0.1, 0.12), case.integer(12, 15)
    fraction = (1 - momentum) ** (k - past)
    return {f"steps_to_forget({momentum}, {fraction!r})": impl(momentum, fraction)}


@smallest.scenario(within=1e-6)
def steps_rounded_up(impl, case):
    asked = {**_forgotten(impl, case, 0.7), **_forgotten(impl, case, 0.3)}
    return {name: _float(k) for name, k in asked.items()}


@smallest.scenario(within=1e-6)
def few_steps(impl, case):
    # So large a momentum that log(1 − momentum) is far from −momentum.
    momentum, seen = case.number("momentum", 0.5, 0.7), {}
    for k in (1, case.integer(2, 3)):
        fraction = (1 - momentum) ** (k - 0.5)
        seen[f"steps_to_forget({momentum}, {fraction!r})"] = _float(impl(momentum, fraction))
    return seen


edges = forget.group("an int; momentum 1 forgets at once", points=0.25)


@edges.scenario(within=4.0)
def steps_at_the_edge(impl, case):
    # Hundreds of steps and a tolerance of a few: off by one is the other group's business.
    momentum, k = case.number("momentum", 0.05, 0.1), case.integer(200, 300)
    many, at_once = (
        impl(momentum, (1 - momentum) ** (k - 0.5)),
        impl(momentum=1.0, fraction=case.number("fraction", 0.2, 0.8)),
    )
    whole = isinstance(many, int) and isinstance(at_once, int)
    return {f"some {k} steps": _float(many), "with momentum 1": str(int(_float(at_once))), "an int": whole}


# --- torch_momentum ---------------------------------------------------------------------------------------------

momenta = Piece("running_stats.torch_momentum", call="torch_momentum(momentum, convention) → float")

translated = momenta.group("Keras, flax and ONNX in PyTorch's terms", points=0.25)


@translated.scenario(within=1e-6)
def momentum_of_other_libraries(impl, case):
    names = ("keras", "flax", "onnx")
    return {name: _float(impl(case.number(f"{name} momentum", 0.7, 0.95), name)) for name in names}


known = momenta.group("PyTorch's own, a Python float, and unknown conventions refused", points=0.25)


@known.scenario(within=1e-6)
def momentum_of_torch(impl, case):
    own = [case.number(f"torch momentum {i}", 0.05, 0.4) for i in range(3)]
    seen = {"torch": np.array([_float(impl(momentum=momentum, convention="torch")) for momentum in own])}
    others = ("jax", "caffe", "tensorflow", "mxnet", "paddle", "")
    seen |= {f"error for {other!r}": raised(impl, own[0], other) for other in others}
    return {**seen, "a Python float": all(isinstance(impl(own[0], name), float) for name in ("torch", "keras"))}


# --- population_stats -------------------------------------------------------------------------------------------

population = Piece("running_stats.population_stats", call="population_stats(batches) → (mean, var, n)")


def _population(impl, batches):
    mean, var, n = named(impl(batches), "mean", "var", "n").values()
    return {"mean": _wide(mean), "var": _wide(var), "n": _float(n)}


def _split(case, values, sizes):
    """Rows of `values`, cut into batches of these sizes; the rest is the last one."""
    parts = np.split(values, np.cumsum(sizes))
    return [case.given_tensor(part, f"batch {i}") for i, part in enumerate(parts)]


def _drifting(case, n, c):
    """Rows whose mean moves on, so that what lies between the batches matters."""
    return case.draw((n, c), np.linspace(-2, 3, n)[:, None] * case.uniform(0.5, 1.5, c), case.uniform(1, 2, c))


single = population.group("one batch: mean, unbiased variance and count", points=0.5)


@single.scenario(dtypes=SINGLE, within=1e-4)
def population_of_a_table(impl, case):
    return _population(impl, [case.given_tensor(table(case, channels(case)), "batch 0")])


@single.scenario(dtypes=SINGLE, within=1e-4)
def population_of_maps(impl, case):
    return _population(impl, [case.given_tensor(maps(case, channels(case)), "batch 0")])


@single.scenario(dtypes=SINGLE, within=1e-4)
def population_of_two_values(impl, case):
    # As few as can be.
    return _population(impl, [case.tensor((2, channels(case)), std=2.0, name="batch 0")])


@single.scenario(dtypes=SINGLE, within=1e-4)
def population_of_one_channel(impl, case):
    return _population(impl, [case.tensor((case.integer(3, 5), 1, 2), case.uniform(-2, 2), 2.0, name="batch 0")])


splits = population.group("the same for every split", points=1)


@splits.scenario(dtypes=SINGLE, within=1e-4)
def population_of_uneven_batches(impl, case):
    values = _drifting(case, 24, channels(case))
    return _population(impl, _split(case, values, (case.integer(3, 5), case.integer(11, 13))))


@splits.scenario(dtypes=SINGLE, within=1e-4)
def population_of_uneven_maps(impl, case):
    values = case.draw((6, 3, 2, 4), np.linspace(-2, 3, 6)[:, None, None, None], case.uniform(1, 2, (3, 1, 1)))
    # Of one data set, and of no one shape: maps, sequences, and maps of another size.
    first, second, third = _split(case, values, (case.integer(1, 2), 1))
    return _population(impl, [first, second.flatten(2), third.reshape(len(third), 3, 4, 2)])


odd = population.group("a generator with an empty batch and batches of one value", points=0.5)


@odd.scenario(dtypes=SINGLE, within=1e-4)
def population_of_odd_batches(impl, case):
    c, row = channels(case), case.uniform(-2, 2)
    # Without the lone value there are two batches left, and not the last alone.
    some, one, more = (case.tensor((n, c), row, name=f"batch {i}") for i, n in enumerate((3, 1, 4)))
    empty = some[:0]
    return _population(impl, (batch for batch in (empty, some, one, empty, more)))


form = population.group("any rank and precision in; float64 tensors and an int out", points=0.5)


@form.scenario(dtypes=SINGLE, within=1e-4)
def population_of_other_ranks(impl, case):
    seen = {}
    for ranked in (sequences, volumes):
        for dtype in (*HALVES, *SINGLE):
            batch = case.given_tensor(ranked(case, 3), "batch", dtype=dtype)
            given = batch if ranked is sequences else rearranged(batch)
            mean, var, n = named(impl([given]), "mean", "var", "n").values()
            seen |= {
                f"mean of {dtype} {ranked.__name__}": _wide(mean),
                f"var of {dtype} {ranked.__name__}, as shares of its sum": shares(_wide(var)),
                f"dtypes of {dtype} {ranked.__name__}": f"{plain_dtype(mean)}, {plain_dtype(var)}",
                f"n of {dtype} {ranked.__name__}": f"{kind(n)} {_float(n):g}",
            }
    # What is in float64 already, and in rows, need not be copied to be worked on: it is the caller's all the same.
    for dtype in (*SINGLE, "float64"):
        impl([case.tensor((4, 3), 1.0, dtype=dtype, name="table")])
    return {**seen, "inputs changed": case.changed(), "gradients are recorded afterwards": torch.is_grad_enabled()}


def _wide(value):
    return value.detach().double() if isinstance(value, torch.Tensor) else value


far = population.group("accurate when the mean is large (float32 in, mean 1e4, std about 1)", points=0.5)


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def population_far_from_zero(impl, case):
    # Twice the same values: nothing lies between the batches, and how they are merged is seen by its rounding alone.
    values = far_values(case, (case.integer(512, 640), 3))
    batches = [case.given_tensor(values, f"batch {i}") for i in range(2)]
    result = named(impl(batches), "mean", "var", "n")
    return {"mean": _wide(result["mean"]), "var": _wide(result["var"])}


@far.scenario(within={"mean": 1e-4, "var, as shares of its sum": 1e-6}, rounding=True)
def population_of_float64_far_from_zero(impl, case):
    # Few values, so far from zero that rounding them to float32 shows.
    x = case.tensor((case.integer(6, 8), 16), 3e4 * case.uniform(0.9, 1.1, 16), name="batch 0")
    result = named(impl([x]), "mean", "var", "n")
    return {"mean": _wide(result["mean"]), "var, as shares of its sum": shares(_wide(result["var"]))}
