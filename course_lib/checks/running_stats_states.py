"""Problem set 2: the layer's state dict, the edges of its inputs, its digits, and its place in a network."""

import copy

import torch
from torch import nn

from course_lib.checks.piece import raised
from course_lib.checks.running_stats_inputs import (
    FAR,
    HALVES,
    SINGLE,
    channels,
    far_values,
    flagged,
    maps,
    plain_dtype,
    table,
)
from course_lib.checks.running_stats_layer import (
    KEPT,
    LEARNED,
    MODES,
    REMEMBERED,
    drawn_layer,
    filled,
    layer,
    own_names,
    state_of,
)

states = layer.group("state dict: PyTorch's names, loaded both ways, old ones too", points=0.75)


@states.scenario(dtypes=SINGLE)
def state_of_a_new_layer(impl, case):
    made = impl(channels(case)).to(case.as_torch("float32"))
    state = made.state_dict()
    counter = state.get("num_batches_tracked")
    first = {f"first {name}": state.get(name) for name in (*LEARNED, *REMEMBERED)}
    as_text = "none" if counter is None else f"{plain_dtype(counter)} {tuple(counter.shape)}: {counter.tolist()}"
    return {"keys": ", ".join(sorted(state)), "num_batches_tracked": as_text, **first, **own_names(made)}


@states.scenario(dtypes=SINGLE)
def keys_of_other_layers(impl, case):
    c = channels(case)
    seen = {}
    # What is left out is another group's business: here it is what stays.
    for name, staying in (("affine", KEPT), ("track_running_stats", LEARNED)):
        keys = sorted(key for key in impl(c, **{name: False}).state_dict() if key in staying)
        seen[f"keys with {name}=False"] = ", ".join(keys)
    return seen


def _drawn_state(case, c):
    """A state dict as PyTorch's layer writes it."""
    theirs = filled(nn.BatchNorm2d(c).to(case.as_torch("float32")), case, c)
    theirs.num_batches_tracked.fill_(case.integer(3, 9))
    return nn.Sequential(theirs).state_dict()


def _contents(made):
    return {**state_of(made, LEARNED + REMEMBERED), "num_batches_tracked": int(made.num_batches_tracked)}


@states.scenario(dtypes=SINGLE)
def state_from_torch(impl, case):
    c = channels(case)
    made = impl(c).to(case.as_torch("float32"))
    nn.Sequential(made).load_state_dict(_drawn_state(case, c))
    return _contents(made)


@states.scenario(dtypes=SINGLE)
def state_to_torch(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c)
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
        seen[f"counter after a dict of {told} without it"] = int(made.num_batches_tracked)
    learned = {f"0.{name}": state[f"0.{name}"] for name in LEARNED}
    without = nn.Sequential(impl(c, track_running_stats=False).to(case.as_torch("float32")))
    told = impl(c).to(case.as_torch("float32"))
    nn.Sequential(told).load_state_dict(dict(_drawn_state(case, c)))
    seen["counter from a dict of no version"] = int(told.num_batches_tracked)
    seen["loading weight and bias alone without running statistics"] = raised(without.load_state_dict, learned)
    return {**seen, **state_of(made, LEARNED + REMEMBERED)}


edges = layer.group("one value per channel, no value, another number of channels", points=0.5)


@edges.scenario(dtypes=SINGLE)
def layer_on_one_value(impl, case):
    c = channels(case)
    seen = {}
    for words, options in (
        ("", {}),
        (" without running statistics", {"track_running_stats": False}),
        (" without weight and bias", {"affine": False}),
        (" with momentum=None", {"momentum": None}),
    ):
        for shape in ((1, c), (1, c, 1), (1, c, 1, 1), (1, c, 1, 1, 1)):
            made = drawn_layer(impl, case, c, names=(), **options)
            seen[f"error for an input of shape {shape}{words}"] = raised(made, case.tensor(shape))
    made = drawn_layer(impl, case, c, names=REMEMBERED)
    before = {name: v.clone() for name, v in state_of(made).items()}
    for half in HALVES:
        seen[f"error for one value per channel of {half}"] = raised(made, case.tensor((1, c), dtype=half))
    moved = {name: not torch.equal(v, before[name]) for name, v in state_of(made).items()}
    return {**seen, "moved by what was refused": flagged(**moved)}


@edges.scenario(dtypes=SINGLE)
def layer_on_other_channels(impl, case):
    c, seen = channels(case), {}
    for words, options in (
        ("", {}),
        (" without running statistics", {"track_running_stats": False}),
        (" without weight and bias", {"affine": False}),
    ):
        made = drawn_layer(impl, case, c, names=(), **options)
        for wrong, shape in ((1, (5, 1)), (1, (5, 1, 3, 2)), (c + 1, (5, c + 1, 3, 2))):
            for mode, trains in MODES.items():
                refused = raised(made.train(trains), torch.ones(shape, dtype=case.torch_dtype)) != "no error"
                seen[f"{wrong} channels for {c} refused in {mode}{words}, input of shape {shape}"] = refused
    return seen


@edges.scenario(dtypes=SINGLE)
def layer_on_empty_batch(impl, case):
    c, seen = channels(case), {}
    x = case.given_tensor(maps(case, c), "x")
    for momentum in (0.5, None):
        made = drawn_layer(impl, case, c, momentum=momentum)
        made(x)
        then = {name: v.clone() for name, v in state_of(made).items()}
        for shape in ((0, c), (0, c, 3, 4)):
            empty = torch.zeros(shape, dtype=case.torch_dtype)
            # As text: the empty output has nothing else.
            shapes = (tuple(made.train(trains)(empty).shape) for trains in MODES.values())
            words = f"an empty batch {shape}, momentum={momentum}"
            seen[f"y of {words}"] = "in training {}, in eval {}".format(*shapes)
            moved = {name: not torch.equal(v, then[name]) for name, v in state_of(made).items()}
            seen[f"changed by {words}"] = flagged(**moved)
        if momentum:
            seen["running_mean"] = made.running_mean.clone()
    return seen


@edges.scenario(dtypes=SINGLE)
def other_layers_on_empty_batch(impl, case):
    c, seen = channels(case), {}
    for words, options, modes in (
        ("affine=False", {"affine": False}, MODES),
        ("track_running_stats=False", {"track_running_stats": False}, ["training"]),
    ):
        made = drawn_layer(impl, case, c, names=(), **options)
        empty = torch.zeros((0, c, 3, 4), dtype=case.torch_dtype)
        for mode in modes:
            seen[f"y of an empty batch in {mode}, {words}"] = str(tuple(made.train(MODES[mode])(empty).shape))
    return seen


far = layer.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.5)


def _far_away(impl, case, values):
    made = drawn_layer(impl, case, 3, momentum=0.5)
    # Parameters so far apart, and from 0 and 1, that no mistake with them hides in the wide tolerance.
    with torch.no_grad():
        made.weight.mul_(0.2).add_(0.3)
        made.bias.mul_(0.2).sub_(3)
    return {"y": made(case.given_tensor(values, "x")), **state_of(made)}


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
    made = drawn_layer(impl, case, c, momentum=0.5)
    net = nn.Sequential(nn.Identity(), made)
    # As what a layer in front gives: what is kept of it is part of a graph.
    net(case.given_tensor(table(case, c), "x").requires_grad_())
    twin = copy.deepcopy(net)
    net(case.given_tensor(table(case, c), "x"))
    before = made.running_mean.clone()
    net.eval()(case.given_tensor(table(case, c), "x"))
    return {
        "running_mean": made.running_mean,
        "running_mean of a copy": twin[1].running_mean,
        "moved after eval() of the network": not torch.equal(made.running_mean, before),
    }
