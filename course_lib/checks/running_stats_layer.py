"""Problem set 2: what is asked of the layer, `course_lib.running_stats.BatchNorm`.

Groups are kept apart: a group observes what it is about in a way that other groups' mistakes leave alone. A momentum of
0.5 is the same in both conventions; the mean of a channel's output is its bias whatever the variance was; an output
brought back to mean 0 and spread 1 says only which values were normalised together, and a gradient of spread 1 only
which way it points.
"""

import copy

import torch
from torch import nn

from course_lib.checks.devices import DONE, attempt, gpus, left_behind, whereabouts
from course_lib.checks.piece import Piece, WrongReturn, raised
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
    sequences,
    shares,
    table,
    volumes,
)

# Observations that are made of an output in float64, with the output's own rounding in them.
FROM_Y = {
    "y, brought to spread 1": 1e-3,
    "y in eval, brought to spread 1": 1e-3,
    "gradient of x, of spread 1": 3e-3,
    "spreads of y, as shares of their sum": 1e-3,
    "mean of y": 1e-3,
}

layer = Piece(
    "running_stats.BatchNorm",
    call="BatchNorm(num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, "
    "dtype=None)",
)
_LEARNED, _REMEMBERED = ("weight", "bias"), ("running_mean", "running_var")
_KEPT = (*_REMEMBERED, "num_batches_tracked")


def _layer(impl, case, *arguments, names=_LEARNED + _REMEMBERED, **options):
    """A layer with drawn parameters and running statistics."""
    made = impl(*arguments, **options).to(case.as_torch("float32"))
    return _filled(made, case, arguments[0] if arguments else options["num_features"], names)


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
                raise WrongReturn(f"expected the layer to have {name}, a tensor of shape ({c},), got {kind(held)}")
            held.copy_(case.given_tensor(drawn[name], name, dtype="float32", watch=False))
    return made


def _state(made, names=_REMEMBERED):
    """Running statistics, or whatever stands in their place."""
    return {name: getattr(made, name, None) for name in names}


def _through(made, case, x):
    """Output and gradients for a drawn gradient at the output."""
    x = x.requires_grad_()
    y = made(x)
    if not isinstance(y, torch.Tensor):
        raise WrongReturn(f"expected forward to return a tensor, got {kind(y)}")
    y.backward(case.given_tensor(case.draw(x.shape, 1.0), "dy").to(y.dtype))
    gradients = {f"gradient of {name}": getattr(made, name).grad for name in _LEARNED}
    return {"y": y, "gradient of x": x.grad, **gradients, "inputs changed": case.changed()}


def _axes(y):
    return (0, *range(2, y.dim()))


def _mean_of(y):
    """Mean of every channel of an output: its bias, whatever the variance was."""
    return y.detach().double().mean(_axes(y))


def _along(vector, y):
    return vector.view(1, -1, *(1,) * (y.dim() - 2))


def _spread_of(y):
    return (y.detach().double() - _along(_mean_of(y), y)).square().mean(_axes(y)).sqrt()


def _standardised(y):
    """Every channel of an output brought to mean 0 and spread 1: what was normalised together, and nothing else."""
    return _of_spread_1(y.detach().double() - _along(_mean_of(y), y))


def _of_spread_1(gradient):
    """Every channel of a gradient brought to spread 1. Its mean stays: 0, if it came back through the statistics."""
    return gradient.double() / _along(_spread_of(gradient), gradient)


training = layer.group("training: output and gradients", points=1.25)


@training.scenario(dtypes=SINGLE)
def training_on_table(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(table(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_maps(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(maps(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_one_image(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(maps(case, c, n=1), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_two_values(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.tensor((2, c), std=2.0))


ranks = layer.group("sequences and volumes: any rank from 2 to 5", points=0.5)


def _normalised(made, x, dy):
    """Output and gradient of x in training, in the parts that do not depend on which variance was taken."""
    x = x.requires_grad_()
    y = made(x)
    y.backward(dy.to(y.dtype))
    return {
        "y, brought to spread 1": _standardised(y),
        "spreads of y, as shares of their sum": shares(_spread_of(y)),
        "mean of y": _mean_of(y),
        "gradient of x, of spread 1": _of_spread_1(x.grad),
    }


def _far_from_eps(made, x):
    """Output in eval, with variances so large that no default of eps shows. The layer is as before, and trains."""
    before = made.running_var.clone()
    with torch.no_grad():
        made.running_var.mul_(100)
        y = made.eval()(x)
        made.running_var.copy_(before)
    made.train()
    return y


def _ranked(impl, case, draw):
    c = channels(case)
    made = _layer(impl, case, c, momentum=0.5)
    x = case.given_tensor(draw(case, c), "x")
    in_eval = _far_from_eps(made, x)
    before = made.running_var.clone()
    seen = _normalised(made, x, case.tensor(x.shape, name="dy"))
    # With a momentum of 0.5, whichever side it weighs, half of the old value is still there.
    came = shares(made.running_var - 0.5 * before)
    now = {"running_mean": made.running_mean, "what came into running_var, as shares of its sum": came}
    return {**seen, **now, "y in eval": in_eval}


@ranks.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_sequences(impl, case):
    return _ranked(impl, case, sequences)


@ranks.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_volumes(impl, case):
    return _ranked(impl, case, volumes)


remembering = layer.group("training: running statistics, moved in place and without history", points=1.25)


@remembering.scenario(dtypes=SINGLE)
def statistics_after_batches(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    before = _state(made, _KEPT)
    made(case.given_tensor(table(case, c), "x"))
    x = case.given_tensor(maps(case, c), "x").requires_grad_()
    made(x).sum().backward()
    history = {name: getattr(v, "requires_grad", False) for name, v in _state(made).items()}
    # What the buffers were is what everybody else holds: an optimiser's average, another rank, a saved reference.
    replaced = {name: v is not before[name] for name, v in _state(made, _KEPT).items()}
    return {
        **_state(made),
        "batches counted": int(made.num_batches_tracked),
        "replaced by new tensors": flagged(**replaced),
        "with autograd history": flagged(**history),
    }


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum(impl, case):
    # By position, and 1: the last batch alone.
    c = channels(case)
    made = _layer(impl, case, c, 0.1, 1.0)
    made(case.given_tensor(maps(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_with_default_momentum(impl, case):
    c = channels(case)
    made = _layer(impl, case, c)
    made(case.given_tensor(table(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_without_gradients(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    with torch.no_grad():
        made(case.given_tensor(maps(case, c), "x"))
    return _state(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum_zero(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=0.0)
    made(case.given_tensor(maps(case, c), "x"))
    return _state(made)


evaluating = layer.group("eval: the running statistics normalise, and stay as they are", points=1)


def _evaluated(made, case, x):
    before = copy.deepcopy(made.state_dict())
    seen = _through(made.eval(), case, x)
    after = made.state_dict()
    return {**seen, "changed in eval": flagged(**{key: not torch.equal(after[key], v) for key, v in before.items()})}


@evaluating.scenario(dtypes=SINGLE)
def eval_on_table(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _evaluated(made, case, case.given_tensor(table(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_on_maps(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _evaluated(made, case, case.given_tensor(maps(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_with_default_eps(impl, case):
    # A variance so small that the default eps shows.
    c = channels(case)
    made = _layer(impl, case, c)
    with torch.no_grad():
        made.running_var.mul_(1e-5)
    return {"y": made.eval()(case.given_tensor(0.01 * table(case, c), "x"))}


@evaluating.scenario(dtypes=SINGLE, within=0.05)
def eval_of_one_value(impl, case):
    c = channels(case)
    made = _layer(impl, case, c)
    return {"y": made.eval()(case.tensor((1, c), std=2.0))}


cumulative = layer.group("momentum=None: all batches weigh alike", points=0.5)


def _averaged(impl, case, c, sizes):
    made = _layer(impl, case, c, momentum=None)
    for i, n in enumerate(sizes):
        made(case.given_tensor(maps(case, c, n=n), f"x{i}"))
    return made


@cumulative.scenario(dtypes=SINGLE)
def average_of_uneven_batches(impl, case):
    made = _averaged(impl, case, channels(case), (case.integer(4, 5), 2, 1))
    return {"running_mean": made.running_mean}


@cumulative.scenario(dtypes=SINGLE)
def average_of_a_loaded_layer(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=None)
    with torch.no_grad():
        made.num_batches_tracked.fill_(case.integer(3, 6))
    made(case.given_tensor(maps(case, c), "x"))
    return {"running_mean": made.running_mean}


@cumulative.scenario(dtypes=SINGLE)
def average_of_variances(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=None)
    for i in range(3):
        made(case.tensor((6, c), std=case.uniform(1, 3, c), name=f"x{i}"))
    # Of batches of one size: the correction of the variance is one common factor, and not asked about here.
    return {"running_var, as shares of its sum": shares(made.running_var)}


@cumulative.scenario(dtypes=SINGLE, within=1e-3)
def average_of_one_batch(impl, case):
    # All of it, where a momentum of 0.5 takes half: whichever variance that is, it is the same one.
    c, seen = channels(case), {}
    x = case.given_tensor(maps(case, c), "x")
    for momentum in (None, 0.5):
        made = _layer(impl, case, c, momentum=momentum)
        with torch.no_grad():
            made.running_var.zero_()
        made(x)
        seen[momentum] = made.running_var
    return {"running_var with momentum None, in that with momentum 0.5": seen[None] / seen[0.5]}


switches = layer.group("affine=False and track_running_stats=False", points=0.5)


def _own(made):
    """Names of what a layer has registered and holds."""
    parameters = ", ".join(sorted(name for name, _ in made.named_parameters()))
    return {"parameters": parameters, "buffers": ", ".join(sorted(name for name, _ in made.named_buffers()))}


@switches.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_without_parameters(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, 1e-5, 0.1, False, names=_REMEMBERED)
    x = case.given_tensor(maps(case, c), "x")
    in_eval = _far_from_eps(made, x)
    before = {name: buffer.clone() for name, buffer in _state(made).items()}
    seen = {**_own(made), **_normalised(made, x, case.tensor(x.shape, name="dy")), "y in eval": in_eval}
    moved = flagged(**{name: not torch.equal(buffer, before[name]) for name, buffer in _state(made).items()})
    return {**seen, "moved in training": moved}


_MODES = {"training": True, "eval": False}
_WITHOUT_MEMORY = {}
for _layer_of in ("training, affine", "training, not affine", "eval, affine", "eval, not affine"):
    # Many values, a wide tolerance: whose statistics these are, and not which variance.
    _WITHOUT_MEMORY[f"y in {_layer_of}"] = 0.05
    _WITHOUT_MEMORY[f"gradient of x in {_layer_of}, of spread 1"] = 1e-3


@switches.scenario(dtypes=SINGLE, within=_WITHOUT_MEMORY)
def layer_without_memory(impl, case):
    c, seen = channels(case), {}
    x = case.given_tensor(case.draw((40, c, 4, 4), case.uniform(3, 5, (c, 1, 1)), case.uniform(2, 3, (c, 1, 1))), "x")
    dy = case.given_tensor(case.draw(x.shape, 1.0), "dy")
    by_position = _layer(impl, case, c, 1e-5, 0.1, True, False, names=())
    by_name = _layer(impl, case, num_features=c, affine=False, track_running_stats=False, names=())
    for words, made in (("affine", by_position), ("not affine", by_name)):
        seen |= {f"{name}, {words}": held for name, held in _own(made).items()}
        for mode, trains in _MODES.items():
            leaf = x.clone().requires_grad_()
            y = made.train(trains)(leaf)
            y.backward(dy)
            seen[f"y in {mode}, {words}"] = y
            seen[f"gradient of x in {mode}, {words}, of spread 1"] = _of_spread_1(leaf.grad)
    return seen


devices = layer.group("on any device: nothing is made or left on the CPU", points=1)


def _visited(made, shape, case, device):
    """What happens in both modes and backward, in facts."""
    x = torch.empty(shape, dtype=case.torch_dtype, device=device)
    seen = {}
    for mode, trains in _MODES.items():
        leaf = x.clone().requires_grad_()
        made.train(trains)

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
    c = channels(case)
    made = impl(c).to(case.as_torch("float32")).to("meta")
    seen = _lifted_away(_visited(made, maps(case, c).shape, case, "meta"), case)
    return {"left behind by .to": left_behind(made, "meta"), **seen}


@devices.scenario(dtypes=SINGLE)
def other_layers_moved_to_meta(impl, case):
    # Every switch, and every rank, has lines of its own to make a tensor in.
    c, seen = channels(case), {}
    for words, draw, options in (
        ("momentum=None, tables", table, {"momentum": None}),
        ("affine=False, sequences", sequences, {"affine": False}),
        ("track_running_stats=False, volumes", volumes, {"track_running_stats": False}),
    ):
        made = impl(c, **options).to(case.as_torch("float32")).to("meta")
        found = _lifted_away(_visited(made, draw(case, c).shape, case, "meta"), case)
        seen |= {f"{words}: {name}": fact for name, fact in found.items()}
    return seen


@devices.scenario(dtypes=SINGLE)
def layer_made_on_meta(impl, case):
    c = channels(case)
    made = impl(c, device="meta")
    return {"made elsewhere with device='meta'": left_behind(made, "meta")}


def _lifted_away(facts, case):
    """float64 of the lifted run under the name it stands for."""
    lifted = str(case.torch_dtype).removeprefix("torch.")
    return {name: str(fact).replace(lifted, case.name) for name, fact in facts.items()}


@devices.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_there_and_back(impl, case):
    c = channels(case)
    made = impl(c).to(case.as_torch("float32")).to("meta").to_empty(device="cpu")
    made = _filled(made, case, c)
    x = case.given_tensor(maps(case, c), "x")
    return {"y, brought to spread 1": _standardised(made(x)), "left behind on the way back": left_behind(made, "cpu")}


@devices.scenario(dtypes=SINGLE)
def layer_on_a_gpu(impl, case):
    c = channels(case)
    here = _layer(impl, case, c)
    x, dy = case.given_tensor(maps(case, c), "x"), case.tensor((1, c, 1, 1), name="dy")
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


_MEANS_OF_HALVES = {f"running_mean after {half}": 2e-4 for half in HALVES}


@halves.scenario(dtypes=SINGLE, within=_MEANS_OF_HALVES, rounding=True)
def half_input_of_a_single_layer(impl, case):
    # Around 30, half precision is good for two digits after the point at best: 16 channels, so that one shows it.
    seen = {}
    for half in HALVES:
        made = _layer(impl, case, 16, momentum=0.5)
        values = case.draw((case.integer(60, 80), 16), case.uniform(25, 35, 16), 2.0)
        x = case.given_tensor(values, "x", dtype=half)
        y = made(x)
        seen |= {
            f"running_mean after {half}": made.running_mean.clone(),
            f"y of {half}": f"{dtype_as(y, case, half)} in training, {dtype_as(made.eval()(x), case, half)} in eval",
            f"running statistics after {half}": ", ".join(dtype_as(v, case) for v in _state(made).values()),
        }
    return seen


# As coarse as bfloat16 is, whose numbers have three digits.
_COARSE = {
    "y, brought to spread 1": 0.15,
    "mean of y": 0.03,
    "y in eval": 0.03,
    "gradient of x, of spread 1": 0.15,
    "running_var": 0.15,
}


@halves.scenario(dtypes=SINGLE, within={f"{half}: {name}": far for half in HALVES for name, far in _COARSE.items()})
def values_of_half_input(impl, case):
    # So many values that n − 1 does not show.
    c, seen = channels(case), {}
    for half in HALVES:
        made = _layer(impl, case, c, momentum=0.5)
        values = case.draw((200, c), case.uniform(-1, 1, c), 2.0)
        x = case.given_tensor(values, "x", dtype=half)
        in_eval = _far_from_eps(made, x).double()
        # A gradient that depends on x, so that what comes back through the variance is no small part.
        found = _normalised(made, x, case.given_tensor(0.5 * values + case.draw(x.shape), "dy", dtype=half))
        found |= {"y in eval": in_eval, "running_var": made.running_var}
        seen |= {f"{half}: {name}": found[name] for name in _COARSE}
    return seen


_LAYERS_OF_HALVES = {f"y of a {half} layer, brought to spread 1": 0.15 for half in HALVES}


@halves.scenario(dtypes=SINGLE, within=_LAYERS_OF_HALVES)
def half_input_of_a_half_layer(impl, case):
    c, seen = channels(case), {}
    for half in HALVES:
        made = _layer(impl, case, c).to(case.as_torch(half))
        y = made(case.tensor((20, c), case.uniform(-1, 1, c), 2.0, dtype=half))
        held = (y, made.weight, made.running_mean)
        seen[f"y of a {half} layer, brought to spread 1"] = _standardised(y)
        seen[f"y, weight and running_mean of a {half} layer"] = ", ".join(dtype_as(v, case, half) for v in held)
    return seen


@halves.scenario(dtypes=SINGLE)
def layer_of_a_given_dtype(impl, case):
    c, seen = channels(case), {}
    for name in ("float64", *HALVES):
        made = impl(c, device="cpu", dtype=getattr(torch, name))
        held = _state(made, (*_LEARNED, *_KEPT)).items()
        seen[f"made with dtype={name}"] = ", ".join(f"{key} {plain_dtype(tensor)}" for key, tensor in held)
    return seen


@halves.scenario(dtypes=SINGLE)
def layer_to_double_and_back(impl, case):
    c = channels(case)
    made = _layer(impl, case, c).to(torch.float64)
    wide = plain_dtype(made(torch.ones(4, c, dtype=torch.float64).cumsum(0)))
    made.to(case.as_torch("float32"))
    return {"y of a float64 layer": wide, "weight after .to() and back": made.weight}


layout = layer.group("channels_last is kept", points=0.25)


@layout.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_channels_last(impl, case):
    c = channels(case)
    made = _layer(impl, case, c)
    x = case.given_tensor(maps(case, c), "x").contiguous(memory_format=torch.channels_last)
    in_eval, y = _far_from_eps(made, x), made(x)
    layouts = {"layout in training": _layout_of(y), "layout in eval": _layout_of(in_eval)}
    return {**layouts, "y, brought to spread 1": _standardised(y), "mean of y": _mean_of(y), "y in eval": in_eval}


def _layout_of(y):
    return "channels_last" if y.is_contiguous(memory_format=torch.channels_last) else "another layout"


states = layer.group("state dict: PyTorch's names, loaded both ways, old ones too", points=0.75)


@states.scenario(dtypes=SINGLE)
def state_of_a_new_layer(impl, case):
    made = impl(channels(case)).to(case.as_torch("float32"))
    state = made.state_dict()
    counter = state.get("num_batches_tracked")
    first = {f"first {name}": state.get(name) for name in (*_LEARNED, *_REMEMBERED)}
    as_text = "none" if counter is None else f"{plain_dtype(counter)} {tuple(counter.shape)}: {counter.tolist()}"
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
    c = channels(case)
    made = impl(c).to(case.as_torch("float32"))
    nn.Sequential(made).load_state_dict(_drawn_state(case, c))
    return _contents(made)


@states.scenario(dtypes=SINGLE)
def state_to_torch(impl, case):
    c = channels(case)
    made = _layer(impl, case, c)
    made.num_batches_tracked.fill_(case.integer(3, 9))
    theirs = nn.BatchNorm2d(c).to(case.as_torch("float32"))
    nn.Sequential(theirs).load_state_dict(nn.Sequential(made).state_dict())
    return _contents(theirs)


@states.scenario(dtypes=SINGLE)
def state_from_before_the_counter(impl, case):
    c = channels(case)
    state = _drawn_state(case, c)
    del state["0.num_batches_tracked"]
    state._metadata["0"]["version"] = 1
    seen = {}
    for told, old in (("version 1", state), ("no version", dict(state))):
        made = impl(c).to(case.as_torch("float32"))
        seen[f"loading a dict of {told} without the counter"] = raised(nn.Sequential(made).load_state_dict, old)
    learned = {f"0.{name}": state[f"0.{name}"] for name in _LEARNED}
    without = nn.Sequential(impl(c, track_running_stats=False).to(case.as_torch("float32")))
    seen["loading weight and bias alone without running statistics"] = raised(without.load_state_dict, learned)
    return {**seen, **_state(made, _LEARNED + _REMEMBERED)}


edges = layer.group("one value per channel, no value, another number of channels", points=0.5)


@edges.scenario(dtypes=SINGLE)
def layer_on_one_value(impl, case):
    c = channels(case)
    return {
        f"error for an input of shape {shape}": raised(_layer(impl, case, c), case.tensor(shape))
        for shape in ((1, c), (1, c, 1), (1, c, 1, 1))
    }


@edges.scenario(dtypes=SINGLE)
def layer_on_other_channels(impl, case):
    c, seen = channels(case), {}
    for words, options in (("", {}), (" without running statistics", {"track_running_stats": False})):
        made = _layer(impl, case, c, names=(), **options)
        for wrong, shape in ((1, (5, 1)), (1, (5, 1, 3, 2)), (c + 1, (5, c + 1, 3, 2))):
            for mode, trains in _MODES.items():
                refused = raised(made.train(trains), torch.ones(shape, dtype=case.torch_dtype)) != "no error"
                seen[f"{wrong} channels for {c} refused in {mode}{words}, input of shape {shape}"] = refused
    return seen


@edges.scenario(dtypes=SINGLE)
def layer_on_empty_batch(impl, case):
    c, seen = channels(case), {}
    x = case.given_tensor(maps(case, c), "x")
    for momentum in (0.5, None):
        made = _layer(impl, case, c, momentum=momentum)
        made(x)
        then = {name: v.clone() for name, v in _state(made).items()}
        for shape in ((0, c), (0, c, 3, 4)):
            empty = torch.zeros(shape, dtype=case.torch_dtype)
            # As text: the empty output has nothing else.
            shapes = (tuple(made.train(trains)(empty).shape) for trains in _MODES.values())
            words = f"an empty batch {shape}, momentum={momentum}"
            seen[f"y of {words}"] = "in training {}, in eval {}".format(*shapes)
            moved = {name: not torch.equal(v, then[name]) for name, v in _state(made).items()}
            seen[f"changed by {words}"] = flagged(**moved)
        if momentum:
            seen["running_mean"] = made.running_mean.clone()
    return seen


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
    return _far_away(impl, case, far_values(case, (case.integer(512, 640), 3)))


@far.scenario(dtypes=SINGLE, within=FAR, rounding=True)
def layer_on_far_maps(impl, case):
    return _far_away(impl, case, far_values(case, (4, 3, case.integer(12, 13), 12)))


whole = layer.group("in a network: train(), eval() and deep copies", points=0.25)


@whole.scenario(dtypes=SINGLE)
def layer_in_a_network(impl, case):
    c = channels(case)
    made = _layer(impl, case, c, momentum=0.5)
    net = nn.Sequential(nn.Identity(), made)
    net(case.given_tensor(table(case, c), "x"))
    twin = copy.deepcopy(net)
    net(case.given_tensor(table(case, c), "x"))
    before = made.running_mean.clone()
    net.eval()(case.given_tensor(table(case, c), "x"))
    return {
        "running_mean": made.running_mean,
        "running_mean of a copy": twin[1].running_mean,
        "moved after eval() of the network": not torch.equal(made.running_mean, before),
    }
