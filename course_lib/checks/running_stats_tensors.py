"""Problem set 2: the layer on other devices, in other precisions and memory layouts."""

import copy

import torch

from course_lib.checks.devices import DONE, attempt, gpus, left_behind, whereabouts
from course_lib.checks.running_stats_inputs import (
    HALVES,
    SINGLE,
    channels,
    dtype_as,
    maps,
    plain_dtype,
    sequences,
    shares,
    table,
    volumes,
)
from course_lib.checks.running_stats_layer import (
    FROM_Y,
    KEPT,
    LEARNED,
    MODES,
    REMEMBERED,
    drawn_layer,
    eval_far_from_eps,
    filled,
    layer,
    mean_of,
    normalised,
    standardised,
    state_of,
)

devices = layer.group("on any device: nothing is made or left on the CPU", points=1)


def _visited(made, shape, case, device):
    """What happens in both modes and backward, in facts."""
    x = torch.empty(shape, dtype=case.torch_dtype, device=device)
    seen = {}
    for mode, trains in MODES.items():
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
    made = filled(made, case, c)
    x = case.given_tensor(maps(case, c), "x")
    return {"y, brought to spread 1": standardised(made(x)), "left behind on the way back": left_behind(made, "cpu")}


@devices.scenario(dtypes=SINGLE)
def layer_on_a_gpu(impl, case):
    c = channels(case)
    here = drawn_layer(impl, case, c)
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


# What bfloat16 rounds off a share of one in sixteen is up to 2e-4, and never less than some 1e-4 in one of them.
_OF_HALVES = {f"running_mean after {half}": 2e-4 for half in HALVES} | {
    "what came into running_var after bfloat16, as shares of its sum": 2e-5
}


@halves.scenario(dtypes=SINGLE, within=_OF_HALVES, rounding=True)
def half_input_of_a_single_layer(impl, case):
    # Around 30, half precision is good for two digits after the point at best: 16 channels, so that one shows it.
    seen = {}
    for half in HALVES:
        made = drawn_layer(impl, case, 16, momentum=0.5)
        values = case.draw((case.integer(60, 80), 16), case.uniform(25, 35, 16), 2.0)
        x = case.given_tensor(values, "x", dtype=half)
        before = made.running_var.clone()
        y = made(x)
        came = shares(made.running_var.double() - 0.5 * before.double())
        if half == "bfloat16":  # where rounding the variance shows most
            seen[f"what came into running_var after {half}, as shares of its sum"] = came
        seen |= {
            f"running_mean after {half}": made.running_mean.clone(),
            f"y of {half}": f"{dtype_as(y, case, half)} in training, {dtype_as(made.eval()(x), case, half)} in eval",
            f"running statistics after {half}": ", ".join(dtype_as(v, case) for v in state_of(made).values()),
        }
    return seen


_OTHER_HALVES = {"maps": ((4, 16, 4, 5), {}), "affine=False": ((70, 16), {"affine": False})}


@halves.scenario(
    dtypes=SINGLE,
    within={f"{words}: running_mean after {half}": 2e-4 for words in _OTHER_HALVES for half in HALVES},
    rounding=True,
)
def half_input_of_other_layers(impl, case):
    seen = {}
    for words, (shape, options) in _OTHER_HALVES.items():
        for half in HALVES:
            made = drawn_layer(impl, case, 16, names=REMEMBERED, momentum=0.5, **options)
            wide = (16,) + (1,) * (len(shape) - 2)
            x = case.given_tensor(case.draw(shape, case.uniform(25, 35, wide), 2.0), "x", dtype=half)
            y = made(x)
            seen |= {
                f"{words}: running_mean after {half}": made.running_mean.clone(),
                f"{words}: y of {half}": dtype_as(y, case, half),
            }
    made = impl(3, track_running_stats=False).to(case.as_torch("float32"))
    for half in HALVES:
        y = made(case.tensor((4, 3), dtype=half))
        seen[f"track_running_stats=False: y of {half}"] = dtype_as(y, case, half)
        y = made(torch.zeros((0, 3), dtype=case.as_torch(half)))
        seen[f"y of an empty batch of {half}"] = dtype_as(y, case, half)
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
        made = drawn_layer(impl, case, c, momentum=0.5)
        values = case.draw((200, c), case.uniform(-1, 1, c), 2.0)
        x = case.given_tensor(values, "x", dtype=half)
        in_eval = eval_far_from_eps(made, x).double()
        # A gradient that depends on x, so that what comes back through the variance is no small part.
        found = normalised(made, x, case.given_tensor(0.5 * values + case.draw(x.shape), "dy", dtype=half))
        found |= {"y in eval": in_eval, "running_var": made.running_var}
        seen |= {f"{half}: {name}": found[name] for name in _COARSE}
    return seen


@halves.scenario(dtypes=SINGLE, within=0.1, rounding=True)
def large_values_of_half_input(impl, case):
    # Their variance is more than float16 can hold.
    c = channels(case)
    x = case.given_tensor(400 * case.draw((200, c)), "x", dtype="float16")
    y = drawn_layer(impl, case, c)(x).double()
    return {"y, less its mean": y - y.mean(0)}


_LAYERS_OF_HALVES = {f"y of a {half} layer, brought to spread 1": 0.15 for half in HALVES}


@halves.scenario(dtypes=SINGLE, within=_LAYERS_OF_HALVES)
def half_input_of_a_half_layer(impl, case):
    c, seen = channels(case), {}
    for half in HALVES:
        made = drawn_layer(impl, case, c).to(case.as_torch(half))
        y = made(case.tensor((20, c), case.uniform(-1, 1, c), 2.0, dtype=half))
        held = (y, made.weight, made.running_mean)
        seen[f"y of a {half} layer, brought to spread 1"] = standardised(y)
        seen[f"y, weight and running_mean of a {half} layer"] = ", ".join(dtype_as(v, case, half) for v in held)
    return seen


@halves.scenario(dtypes=SINGLE)
def layer_of_a_given_dtype(impl, case):
    c, seen = channels(case), {}
    for name in ("float64", *HALVES):
        made = impl(c, device="cpu", dtype=getattr(torch, name))
        held = state_of(made, (*LEARNED, *KEPT)).items()
        seen[f"made with dtype={name}"] = ", ".join(f"{key} {plain_dtype(tensor)}" for key, tensor in held)
    return seen


@halves.scenario(dtypes=SINGLE)
def layer_to_double_and_back(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c).to(torch.float64)
    wide = plain_dtype(made(torch.ones(4, c, dtype=torch.float64).cumsum(0)))
    made.to(case.as_torch("float32"))
    return {"y of a float64 layer": wide, "weight after .to() and back": made.weight}


layout = layer.group("channels_last is kept", points=0.25)


@layout.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_on_channels_last(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c)
    x = case.given_tensor(maps(case, c), "x").contiguous(memory_format=torch.channels_last)
    in_eval, y = eval_far_from_eps(made, x), made(x)
    layouts = {"layout in training": _layout_of(y), "layout in eval": _layout_of(in_eval)}
    return {**layouts, "y, brought to spread 1": standardised(y), "mean of y": mean_of(y), "y in eval": in_eval}


@layout.scenario(dtypes=SINGLE)
def other_layers_on_channels_last(impl, case):
    c, seen = channels(case), {}
    for words, dtype, options, modes in (
        ("bfloat16", "bfloat16", {}, MODES),
        ("affine=False", "float32", {"affine": False}, MODES),
        ("track_running_stats=False", "float32", {"track_running_stats": False}, ["training"]),
    ):
        made = drawn_layer(impl, case, c, names=(), **options)
        x = case.given_tensor(maps(case, c), "x", dtype=dtype).contiguous(memory_format=torch.channels_last)
        for mode in modes:
            seen[f"layout in {mode}, {words}"] = _layout_of(made.train(MODES[mode])(x))
    return seen


def _layout_of(y):
    return "channels_last" if y.is_contiguous(memory_format=torch.channels_last) else "another layout"
