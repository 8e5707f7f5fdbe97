"""Problem set 2: what is asked of the pieces of `course_lib.running_stats`.

Groups are kept apart: a group observes what it is about in a way that other groups' mistakes leave alone. A momentum of
0.5 is the same in both conventions; the mean of a channel's output is its bias whatever the variance was; an output
brought back to mean 0 and spread 1 says only which values were normalised together.
"""

import copy

import numpy as np
import torch
from torch import nn

from course_lib.checks.devices import DONE, attempt, gpus, left_behind, whereabouts
from course_lib.checks.piece import Piece, WrongReturn, named, raised

SINGLE = ("float32",)
HALVES = ("float16", "bfloat16")
# float32 at mean 1e4: an honest mean is off by some 1e-2, and so is y; an honest variance by 1e-3; one pass by 0.1 or
# more. 512 to 640 values per channel, so that n − 1 does not show.
FAR = {"y": 0.25, "running_mean": 0.1, "running_var": 1e-2, "var": 1e-2, "mean": 1e-6}
FAR_STD = (0.5, 0.8, 1.2)
# Observations that are made of an output in float64, with the output's own rounding in them.
FROM_Y = {"y, brought to spread 1": 1e-3, "y in eval, brought to spread 1": 1e-3, "mean of y": 1e-3}


# --- inputs -----------------------------------------------------------------------------------------------------


def _table(case, c):
    """(N, C) with few rows: n and n − 1 differ."""
    return case.draw((case.integer(5, 8), c), case.uniform(-3, 3, c), case.uniform(1, 3, c))


def _maps(case, c, n=None):
    """(N, C, H, W), N, H and W all different."""
    h = case.integer(4, 5)
    shape = (n or case.integer(2, 3), c, h, h + 1)
    return case.draw(shape, case.uniform(-3, 3, (c, 1, 1)), case.uniform(1, 3, (c, 1, 1)))


def _sequences(case, c):
    return case.draw((3, c, case.integer(4, 6)), case.uniform(-3, 3, (c, 1)), 2.0)


def _volumes(case, c):
    return case.draw((2, c, 3, case.integer(4, 5), 2), case.uniform(-3, 3, (c, 1, 1, 1)), 2.0)


def _far(case, shape):
    wide = (3,) + (1,) * (len(shape) - 2)
    return case.draw(shape, 1e4 * case.uniform(0.9, 1.1, wide), np.reshape(FAR_STD, wide))


def _channels(case):
    return case.integer(3, 4)


# --- update_running_stats ---------------------------------------------------------------------------------------

update = Piece(
    "running_stats.update_running_stats", call="update_running_stats(running_mean, running_var, x, momentum) → None"
)


def _buffers(case, c):
    mean = case.tensor((c,), std=2.0, name="running_mean", dtype="float32", watch=False)
    var = case.given_tensor(case.uniform(0.5, 3, c), "running_var", dtype="float32", watch=False)
    return mean, var


def _updated(impl, case, values, momentum=0.5):
    """Both buffers after one update."""
    mean, var = _buffers(case, values.shape[1])
    impl(mean, var, case.given_tensor(values, "x"), momentum)
    return {"running_mean": mean, "running_var": var}


moved = update.group("running mean and unbiased running variance, both in place", points=0.75)


@moved.scenario(dtypes=SINGLE)
def update_by_table(impl, case):
    return _updated(impl, case, _table(case, _channels(case)), case.number("momentum", 0.15, 0.4))


@moved.scenario(dtypes=SINGLE)
def update_by_maps(impl, case):
    return _updated(impl, case, _maps(case, _channels(case)), case.number("momentum", 0.15, 0.4))


@moved.scenario(dtypes=SINGLE)
def update_by_one_image(impl, case):
    return _updated(impl, case, _maps(case, _channels(case), n=1), case.number("momentum", 0.6, 0.9))


@moved.scenario(dtypes=SINGLE)
def update_by_two_values(impl, case):
    # As few as can be.
    return _updated(impl, case, case.draw((2, _channels(case)), 1.0, 2.0), case.number("momentum", 0.15, 0.4))


ranks = update.group("sequences and volumes as well", points=0.25)


@ranks.scenario(dtypes=SINGLE)
def update_by_sequences(impl, case):
    return {"running_mean": _updated(impl, case, _sequences(case, 3))["running_mean"]}


@ranks.scenario(dtypes=SINGLE)
def update_by_volumes(impl, case):
    return {"running_mean": _updated(impl, case, _volumes(case, 3))["running_mean"]}


contract = update.group("no autograd history, nothing returned, x untouched", points=0.5)


@contract.scenario(dtypes=SINGLE)
def update_by_output_of_a_network(impl, case):
    c = _channels(case)
    mean, var = _buffers(case, c)
    x = case.given_tensor(_maps(case, c), "x")
    # As a layer in front would hand it over: part of a graph.
    result = impl(mean, var, x * torch.ones(c, 1, 1, dtype=x.dtype, requires_grad=True), 0.5)
    impl(mean, var, x, 0.5)
    return {
        "running_mean": mean,
        "buffers with autograd history": _names(running_mean=mean.requires_grad, running_var=var.requires_grad),
        "returned": "None" if result is None else type(result).__name__,
        "inputs changed": case.changed(),
    }


def _names(**flags):
    return ", ".join(name for name, flag in flags.items() if flag)


half = update.group("float32 statistics of float16 and bfloat16 input", points=0.25)


@half.scenario(dtypes=HALVES, within={"running_mean": 2e-4}, rounding=True)
def update_by_half_input(impl, case):
    # Around 30, half precision is good for two digits after the point at best: 16 channels, so that one shows it.
    x = case.draw((case.integer(60, 80), 16), case.uniform(25, 35, 16), 2.0)
    seen = _updated(impl, case, x)
    return {"running_mean": seen["running_mean"], "dtype of running_var": _dtype(seen["running_var"], case)}


def _dtype(tensor, case):
    """The name of a dtype; the lifted run's float64 under the name it stands for."""
    name = _plain_dtype(tensor)
    return "float32" if name == str(case.as_torch("float32")).removeprefix("torch.") else name


far = update.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.25)


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def update_far_from_zero(impl, case):
    return _updated(impl, case, _far(case, (case.integer(512, 640), 3)))


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


extremes = ema.group("no step at all, and a memory that forgets everything: a Python float", points=0.25)


@extremes.scenario(within=1e-4)
def average_at_extremes(impl, case):
    initial, value = case.number("initial", -2, -1), case.number("value", 3, 6)
    still, gone = impl(initial, value, case.number("momentum", 0.2, 0.4), 0), impl(initial, value, 1.0, 2)
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


edges = forget.group("an int; momentum 1 forgets at once", points=0.25)


@edges.scenario(within=4.0)
def steps_at_the_edge(impl, case):
    # Hundreds of steps and a tolerance of a few: off by one is the other group's business.
    momentum, k = case.number("momentum", 0.05, 0.1), case.integer(200, 300)
    many, at_once = impl(momentum, (1 - momentum) ** (k - 0.5)), impl(1.0, case.number("fraction", 0.2, 0.8))
    whole = isinstance(many, int) and isinstance(at_once, int)
    return {f"some {k} steps": _float(many), "with momentum 1": str(int(_float(at_once))), "an int": whole}


# --- torch_momentum ---------------------------------------------------------------------------------------------

momenta = Piece("running_stats.torch_momentum", call="torch_momentum(momentum, convention) → float")

translated = momenta.group("Keras, flax and ONNX in PyTorch's terms", points=0.25)


@translated.scenario(within=1e-6)
def momentum_of_other_libraries(impl, case):
    names = ("keras", "flax", "onnx")
    return {name: _float(impl(case.number(f"{name} momentum", 0.7, 0.95), name)) for name in names}


known = momenta.group("PyTorch's own, and an unknown convention refused", points=0.25)


@known.scenario(within=1e-6)
def momentum_of_torch(impl, case):
    other = case.choice(["jax", "caffe", "tensorflow", "mxnet", "paddle"])
    own = _float(impl(case.number("torch momentum", 0.05, 0.3), "torch"))
    return {"torch": own, f"error for {other!r}": raised(impl, 0.9, other)}


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
    return _population(impl, [case.given_tensor(_table(case, _channels(case)), "batch 0")])


@single.scenario(dtypes=SINGLE, within=1e-4)
def population_of_maps(impl, case):
    return _population(impl, [case.given_tensor(_maps(case, _channels(case)), "batch 0")])


splits = population.group("the same for every split", points=1)


@splits.scenario(dtypes=SINGLE, within=1e-4)
def population_of_uneven_batches(impl, case):
    values = _drifting(case, 24, _channels(case))
    return _population(impl, _split(case, values, (case.integer(3, 5), case.integer(11, 13))))


@splits.scenario(dtypes=SINGLE, within=1e-4)
def population_of_uneven_maps(impl, case):
    values = case.draw((6, 3, 2, 4), np.linspace(-2, 3, 6)[:, None, None, None], case.uniform(1, 2, (3, 1, 1)))
    return _population(impl, _split(case, values, (case.integer(1, 2), 1)))


odd = population.group("a generator with an empty batch and batches of one value", points=0.5)


@odd.scenario(dtypes=SINGLE, within=1e-4)
def population_of_odd_batches(impl, case):
    c, row = _channels(case), case.uniform(-2, 2)
    one, pair = case.tensor((1, c), row, name="batch 0"), case.tensor((4, c), row, name="batch 1")
    # Exactly as far from the rest as to leave the mean of all where it was, whatever the weights of the batches.
    empty = pair[:0]
    return _population(impl, (batch for batch in (one, empty, pair, empty)))


form = population.group("any rank and precision in; float64 tensors and an int out", points=0.5)


@form.scenario(dtypes=(*HALVES, *SINGLE), within=1e-4)
def population_of_other_ranks(impl, case):
    values = case.choice([_sequences, _volumes])(case, 3)
    mean, var, n = named(impl([case.given_tensor(values, "batch 0")]), "mean", "var", "n").values()
    facts = {"dtypes": f"{_plain_dtype(mean)}, {_plain_dtype(var)}", "n is an int": isinstance(n, int)}
    return {"mean": _wide(mean), **facts, "inputs changed": case.changed()}


def _plain_dtype(value):
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else f"no tensor: {_kind(value)}"


def _wide(value):
    return value.detach().double() if isinstance(value, torch.Tensor) else value


far = population.group("accurate when the mean is large (float32 in, mean 1e4, std about 1)", points=0.5)


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def population_far_from_zero(impl, case):
    result = named(impl([case.given_tensor(_far(case, (case.integer(512, 640), 3)), "batch 0")]), "mean", "var", "n")
    return {"mean": _wide(result["mean"]), "var": _wide(result["var"])}


# --- BatchNorm --------------------------------------------------------------------------------------------------

layer = Piece(
    "running_stats.BatchNorm",
    call="BatchNorm(num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, "
    "dtype=None)",
)
_LEARNED, _REMEMBERED = ("weight", "bias"), ("running_mean", "running_var")


def _layer(impl, case, c, *arguments, names=_LEARNED + _REMEMBERED, **options):
    """A layer with drawn parameters and running statistics."""
    return _filled(impl(c, *arguments, **options).to(case.as_torch("float32")), case, c, names)


def _filled(made, case, c, names=_LEARNED + _REMEMBERED):
    drawn = {
        "weight": case.uniform(0.5, 2, c),
        "bias": case.uniform(-2, 2, c),
        "running_mean": case.uniform(-2, 2, c),
        "running_var": case.uniform(0.5, 3, c),
    }
    with torch.no_grad():
        for name in names:
            held = getattr(made, name, None)
            if not isinstance(held, torch.Tensor):
                raise WrongReturn(f"expected the layer to have {name}, a tensor of shape ({c},), got {_kind(held)}")
            held.copy_(case.given_tensor(drawn[name], name, dtype="float32", watch=False))
    return made


def _kind(value):
    return "none" if value is None else type(value).__name__


def _state(made, names=_REMEMBERED):
    """Running statistics, or whatever stands in their place."""
    return {name: getattr(made, name, None) for name in names}


def _through(made, case, x):
    """Output and gradients for a drawn gradient at the output."""
    x = x.requires_grad_()
    y = made(x)
    if not isinstance(y, torch.Tensor):
        raise WrongReturn(f"expected forward to return a tensor, got {_kind(y)}")
    y.backward(case.given_tensor(case.draw(x.shape, 1.0), "dy").to(y.dtype))
    gradients = {f"gradient of {name}": getattr(made, name).grad for name in _LEARNED}
    return {"y": y, "gradient of x": x.grad, **gradients, "inputs changed": case.changed()}


def _axes(y):
    return (0, *range(2, y.dim()))


def _mean_of(y):
    """Mean of every channel of an output: its bias, whatever the variance was."""
    return y.detach().double().mean(_axes(y))


def _standardised(y):
    """Every channel of an output brought to mean 0 and spread 1: what was normalised together, and nothing else."""
    y = y.detach().double()
    centred = y - y.mean(_axes(y), keepdim=True)
    return centred / centred.square().mean(_axes(y), keepdim=True).sqrt()


training = layer.group("training: output and gradients", points=1.25)


@training.scenario(dtypes=SINGLE)
def training_on_table(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(_table(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_maps(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(_maps(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_one_image(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(_maps(case, c, n=1), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_two_values(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.tensor((2, c), std=2.0))


ranks = layer.group("sequences and volumes: any rank from 2 to 5", points=0.5)


def _ranked(impl, case, draw):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=0.5)
    x = case.given_tensor(draw(case, c), "x")
    seen = {"y, brought to spread 1": _standardised(made(x)), "running_mean": made.running_mean.clone()}
    return {**seen, "y in eval, brought to spread 1": _standardised(made.eval()(x))}


@ranks.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_sequences(impl, case):
    return _ranked(impl, case, _sequences)


@ranks.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_volumes(impl, case):
    return _ranked(impl, case, _volumes)


remembering = layer.group("training: running statistics, moved in place and without history", points=1.25)


@remembering.scenario(dtypes=SINGLE)
def statistics_after_batches(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    before = _state(made)
    made(case.given_tensor(_table(case, c), "x"))
    x = case.given_tensor(_maps(case, c), "x").requires_grad_()
    made(x).sum().backward()
    history = {name: getattr(v, "requires_grad", False) for name, v in _state(made).items()}
    # What the buffers were is what everybody else holds: an optimiser's average, another rank, a saved reference.
    replaced = {name: v is not before[name] for name, v in _state(made).items()}
    return {
        **_state(made),
        "batches counted": int(made.num_batches_tracked),
        "replaced by new tensors": _names(**replaced),
        "with autograd history": _names(**history),
    }


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum(impl, case):
    # By position, and 1: the last batch alone.
    c = _channels(case)
    made = _layer(impl, case, c, 0.1, 1.0)
    made(case.given_tensor(_maps(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_with_default_momentum(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c)
    made(case.given_tensor(_table(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_without_gradients(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    with torch.no_grad():
        made(case.given_tensor(_maps(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum_zero(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=0.0)
    made(case.given_tensor(_maps(case, c), "x"))
    return _state(made)


evaluating = layer.group("eval: the running statistics normalise, and stay as they are", points=1)


def _evaluated(made, case, x):
    before = copy.deepcopy(made.state_dict())
    seen = _through(made.eval(), case, x)
    after = made.state_dict()
    return {**seen, "changed in eval": _names(**{key: not torch.equal(after[key], v) for key, v in before.items()})}


@evaluating.scenario(dtypes=SINGLE)
def eval_on_table(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _evaluated(made, case, case.given_tensor(_table(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_on_maps(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _evaluated(made, case, case.given_tensor(_maps(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_with_default_eps(impl, case):
    # A variance so small that the default eps shows.
    c = _channels(case)
    made = _layer(impl, case, c)
    with torch.no_grad():
        made.running_var.mul_(1e-5)
    return {"y": made.eval()(case.given_tensor(0.01 * _table(case, c), "x"))}


@evaluating.scenario(dtypes=SINGLE, within=0.05)
def eval_of_one_value(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c)
    return {"y": made.eval()(case.tensor((1, c), std=2.0))}


cumulative = layer.group("momentum=None: all batches weigh alike", points=0.5)


def _averaged(impl, case, c, sizes):
    made = _layer(impl, case, c, momentum=None)
    for i, n in enumerate(sizes):
        made(case.given_tensor(_maps(case, c, n=n), f"x{i}"))
    return made


@cumulative.scenario(dtypes=SINGLE)
def average_of_uneven_batches(impl, case):
    made = _averaged(impl, case, _channels(case), (case.integer(4, 5), 2, 1))
    return {"running_mean": made.running_mean}


@cumulative.scenario(dtypes=SINGLE)
def average_of_a_loaded_layer(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=None)
    with torch.no_grad():
        made.num_batches_tracked.fill_(case.integer(3, 6))
    made(case.given_tensor(_maps(case, c), "x"))
    return {"running_mean": made.running_mean}


@cumulative.scenario(dtypes=SINGLE)
def average_of_variances(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=None)
    for i in range(3):
        made(case.tensor((6, c), std=case.uniform(1, 3, c), name=f"x{i}"))
    # Of batches of one size: the correction of the variance is one common factor, and not asked about here.
    return {"running_var, as shares of its sum": made.running_var / made.running_var.sum()}


switches = layer.group("affine=False and track_running_stats=False", points=0.5)


def _own(made):
    """Names of what a layer has registered and holds."""
    parameters = ", ".join(sorted(name for name, _ in made.named_parameters()))
    return {"parameters": parameters, "buffers": ", ".join(sorted(name for name, _ in made.named_buffers()))}


@switches.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_without_parameters(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, 1e-5, 0.1, False, names=_REMEMBERED)
    x = case.given_tensor(_maps(case, c), "x")
    return {**_own(made), "y, brought to spread 1": _standardised(made(x))}


@switches.scenario(dtypes=SINGLE, within=0.05)
def layer_without_memory(impl, case):
    # Many values, a wide tolerance: whose statistics these are, and not which variance.
    c = _channels(case)
    made = _layer(impl, case, c, 1e-5, 0.1, True, False, names=())
    x = case.given_tensor(case.draw((40, c, 4, 4), case.uniform(3, 5, (c, 1, 1)), case.uniform(2, 3, (c, 1, 1))), "x")
    return {**_own(made), "y in training": made(x), "y in eval": made.eval()(x)}


devices = layer.group("on any device: nothing is made or left on the CPU", points=1)


def _visited(made, case, c, device):
    """What happens in both modes and backward, in facts."""
    x = torch.empty(_maps(case, c).shape, dtype=case.torch_dtype, device=device)
    seen = {}
    for mode in ("training", "eval"):
        leaf = x.clone().requires_grad_()
        made.train(mode == "training")

        def run(leaf=leaf):
            y = made(leaf)
            y.sum().backward()
            return y

        seen[f"{mode}, forward and backward"], y = attempt(run, device)
        if seen[f"{mode}, forward and backward"] == DONE:
            seen[f"{mode}: y, gradient of x"] = f"{whereabouts(y)}, {whereabouts(leaf.grad)}"
    return {**seen, "left behind after use": left_behind(made, device)}


@devices.scenario(dtypes=SINGLE)
def layer_moved_to_meta(impl, case):
    c = _channels(case)
    made = impl(c).to(case.as_torch("float32")).to("meta")
    return {"left behind by .to": left_behind(made, "meta"), **_lifted_away(_visited(made, case, c, "meta"), case)}


@devices.scenario(dtypes=SINGLE)
def layer_made_on_meta(impl, case):
    c = _channels(case)
    made = impl(c, device="meta")
    return {"made elsewhere with device='meta'": left_behind(made, "meta")}


def _lifted_away(facts, case):
    """float64 of the lifted run under the name it stands for."""
    lifted = str(case.torch_dtype).removeprefix("torch.")
    return {name: str(fact).replace(lifted, case.name) for name, fact in facts.items()}


@devices.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_there_and_back(impl, case):
    c = _channels(case)
    made = impl(c).to(case.as_torch("float32")).to("meta").to_empty(device="cpu")
    made = _filled(made, case, c)
    x = case.given_tensor(_maps(case, c), "x")
    return {"y, brought to spread 1": _standardised(made(x)), "left behind on the way back": left_behind(made, "cpu")}


@devices.scenario(dtypes=SINGLE)
def layer_on_a_gpu(impl, case):
    c = _channels(case)
    here = _layer(impl, case, c)
    x, dy = case.given_tensor(_maps(case, c), "x"), case.tensor((1, c, 1, 1), name="dy")
    results = []
    for device in ("cpu", *gpus()):
        made, leaf = copy.deepcopy(here).to(device), x.to(device, copy=True).requires_grad_()
        y = made(leaf)
        y.backward(dy.to(device).expand_as(y))
        results.append([y, leaf.grad, made.weight.grad, made.running_mean, made.running_var, made.eval()(leaf)])
    same = all(
        _close(there.cpu(), here) for other in results[1:] for here, there in zip(results[0], other, strict=True)
    )
    return {"the same on a GPU, if there is one": same}


def _close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


halves = layer.group("float16 and bfloat16 in and out, float32 statistics; dtype= and .to()", points=0.75)


@halves.scenario(dtypes=HALVES, within={"running_mean": 2e-4}, rounding=True)
def half_input_of_a_single_layer(impl, case):
    made = _layer(impl, case, 16, momentum=0.5)
    x = case.given_tensor(case.draw((case.integer(60, 80), 16), case.uniform(25, 35, 16), 2.0), "x").requires_grad_()
    y = made(x)
    y.sum().backward()
    dtypes = f"{_dtype_of_half(y, case)}, gradient of x {_dtype_of_half(x.grad, case)}"
    mean, kept = made.running_mean.clone(), _dtype(made.running_mean, case)
    in_eval = _dtype_of_half(made.eval()(x), case)
    return {"running_mean": mean, "y": dtypes, "y in eval": in_eval, "running statistics": kept}


def _dtype_of_half(tensor, case):
    name = _plain_dtype(tensor)
    return case.name if name == str(case.torch_dtype).removeprefix("torch.") else name


@halves.scenario(dtypes=HALVES, within=0.15)
def half_input_of_a_half_layer(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c).to(case.torch_dtype)
    y = made(case.tensor((20, c), case.uniform(-1, 1, c), 2.0))
    dtypes = sorted({_dtype_of_half(v, case) for v in (y, made.weight, made.running_mean)})
    return {"y, brought to spread 1": _standardised(y), "dtypes": ", ".join(dtypes)}


@halves.scenario(dtypes=SINGLE)
def layer_of_a_given_dtype(impl, case):
    name = case.choice(["float64", *HALVES])
    made = impl(_channels(case), dtype=getattr(torch, name))
    dtypes = (f"{key} {_plain_dtype(held)}" for key, held in _state(made, _LEARNED + _REMEMBERED).items())
    return {f"made with dtype={name}": ", ".join(dtypes)}


@halves.scenario(dtypes=SINGLE)
def layer_to_double_and_back(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c).to(torch.float64)
    wide = _plain_dtype(made(torch.ones(4, c, dtype=torch.float64).cumsum(0)))
    made.to(case.as_torch("float32"))
    return {"y of a float64 layer": wide, "weight after .to() and back": made.weight}


layout = layer.group("channels_last is kept", points=0.25)


@layout.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_channels_last(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c)
    x = case.given_tensor(_maps(case, c), "x").contiguous(memory_format=torch.channels_last)
    seen = {"mean of y": _mean_of(y := made(x)), "y in training": _is_channels_last(y)}
    return {**seen, "y in eval": _is_channels_last(made.eval()(x))}


def _is_channels_last(y):
    return "channels_last" if y.is_contiguous(memory_format=torch.channels_last) else "another layout"


states = layer.group("state dict: PyTorch's names, loaded both ways, old ones too", points=0.75)


@states.scenario(dtypes=SINGLE)
def state_of_a_new_layer(impl, case):
    made = impl(_channels(case)).to(case.as_torch("float32"))
    state = made.state_dict()
    counter = state.get("num_batches_tracked")
    first = {f"first {name}": state.get(name) for name in (*_LEARNED, *_REMEMBERED)}
    as_text = "none" if counter is None else f"{_plain_dtype(counter)} {tuple(counter.shape)}: {counter.tolist()}"
    return {"keys": ", ".join(sorted(state)), "num_batches_tracked": as_text, **first, **_own(made)}


def _drawn_state(case, c):
    """A state dict as PyTorch's layer writes it."""
    theirs = _filled(nn.BatchNorm2d(c).to(case.as_torch("float32")), case, c)
    theirs.num_batches_tracked.fill_(case.integer(3, 9))
    return nn.Sequential(theirs).state_dict()


def _contents(made):
    return {**_state(made, _LEARNED + _REMEMBERED), "num_batches_tracked": int(made.num_batches_tracked)}


@states.scenario(dtypes=SINGLE)
def state_from_torch(impl, case):
    c = _channels(case)
    made = impl(c).to(case.as_torch("float32"))
    nn.Sequential(made).load_state_dict(_drawn_state(case, c))
    return _contents(made)


@states.scenario(dtypes=SINGLE)
def state_to_torch(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c)
    made.num_batches_tracked.fill_(case.integer(3, 9))
    theirs = nn.BatchNorm2d(c).to(case.as_torch("float32"))
    nn.Sequential(theirs).load_state_dict(nn.Sequential(made).state_dict())
    return _contents(theirs)


@states.scenario(dtypes=SINGLE)
def state_from_before_the_counter(impl, case):
    c = _channels(case)
    state = _drawn_state(case, c)
    del state["0.num_batches_tracked"]
    state._metadata["0"]["version"] = 1
    seen = {}
    for told, old in (("version 1", state), ("no version", dict(state))):
        made = impl(c).to(case.as_torch("float32"))
        seen[f"loading a dict of {told} without the counter"] = raised(nn.Sequential(made).load_state_dict, old)
    return {**seen, **_state(made, _LEARNED + _REMEMBERED)}


edges = layer.group("one value per channel, no value, another number of channels", points=0.5)


@edges.scenario(dtypes=SINGLE)
def layer_on_one_value(impl, case):
    c = _channels(case)
    shape = case.choice([(1, c), (1, c, 1, 1)])
    return {f"error for an input of shape {shape}": raised(_layer(impl, case, c), case.tensor(shape))}


@edges.scenario(dtypes=SINGLE)
def layer_on_other_channels(impl, case):
    c = _channels(case)
    made, seen = _layer(impl, case, c), {}
    for wrong in (1, c + 1):
        for mode in ("training", "eval"):
            x = torch.ones(5, wrong, 3, 2, dtype=case.torch_dtype)
            refused = raised(made.train(mode == "training"), x) != "no error"
            seen[f"{wrong} channels for {c} refused in {mode}"] = refused
    return seen


@edges.scenario(dtypes=SINGLE)
def layer_on_empty_batch(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=0.5)
    made(case.given_tensor(_maps(case, c), "x"))
    then = {name: v.clone() for name, v in _state(made).items()}
    empty = torch.zeros(case.choice([(0, c), (0, c, 3, 4)]), dtype=case.torch_dtype)
    shape = tuple(made(empty).shape)
    moved = _names(**{name: not torch.equal(v, then[name]) for name, v in _state(made).items()})
    mean = made.running_mean.clone()
    in_eval = tuple(made.eval()(empty).shape)
    seen = {f"y of an empty batch {tuple(empty.shape)}": str(shape), "in eval": str(in_eval)}
    return {**seen, "changed by it": moved, "running_mean": mean}


far = layer.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.5)


def _far_away(impl, case, values):
    made = _layer(impl, case, 3, momentum=0.5)
    # Parameters so far apart, and from 0 and 1, that no mistake with them hides in the wide tolerance.
    with torch.no_grad():
        made.weight.mul_(0.2).add_(0.3)
        made.bias.mul_(0.2).sub_(3)
    return {"y": made(case.given_tensor(values, "x")), **_state(made)}


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def layer_on_a_far_table(impl, case):
    return _far_away(impl, case, _far(case, (case.integer(512, 640), 3)))


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def layer_on_far_maps(impl, case):
    return _far_away(impl, case, _far(case, (4, 3, case.integer(12, 13), 12)))


whole = layer.group("in a network: train(), eval() and deep copies", points=0.25)


@whole.scenario(dtypes=SINGLE)
def layer_in_a_network(impl, case):
    c = _channels(case)
    made = _layer(impl, case, c, momentum=0.5)
    net = nn.Sequential(nn.Identity(), made)
    net(case.given_tensor(_table(case, c), "x"))
    twin = copy.deepcopy(net)
    net(case.given_tensor(_table(case, c), "x"))
    before = made.running_mean.clone()
    net.eval()(case.given_tensor(_table(case, c), "x"))
    return {
        "running_mean": made.running_mean,
        "running_mean of a copy": twin[1].running_mean,
        "moved after eval() of the network": not torch.equal(made.running_mean, before),
    }
