"""Problem set 2: what the layer computes and remembers, in both modes and with every switch."""

import copy

import torch

from course_lib.checks.piece import WrongReturn
from course_lib.checks.running_stats_inputs import (
    SINGLE,
    channels,
    flagged,
    kind,
    maps,
    rearranged,
    sequences,
    shares,
    table,
    volumes,
)
from course_lib.checks.running_stats_layer import (
    FROM_Y,
    LEARNED,
    MODES,
    REMEMBERED,
    aliased,
    drawn_layer,
    eval_far_from_eps,
    layer,
    normalised,
    of_spread_1,
    own_names,
    replaced,
    state_of,
)


def _through(made, case, x):
    """Output and gradients for a drawn gradient at the output."""
    x = x.requires_grad_()
    y = made(x)
    if not isinstance(y, torch.Tensor):
        raise WrongReturn(f"expected forward to return a tensor, got {kind(y)}")
    y.backward(case.given_tensor(case.draw(x.shape, 1.0), "dy").to(y.dtype))
    gradients = {f"gradient of {name}": getattr(made, name).grad for name in LEARNED}
    # Where nothing is recorded, autograd does not mind if x is written over: the caller does.
    with torch.no_grad():
        made(x.detach())
    return {"y": y, "gradient of x": x.grad, **gradients, "inputs changed": case.changed()}


def _signed(made):
    """Some weights are learned to be negative, and some start at zero: the first two of a layer."""
    with torch.no_grad():
        made.weight[0].neg_()
        made.weight[1].zero_()
    return made


training = layer.group("training: output and gradients", points=1.25)


@training.scenario(dtypes=SINGLE)
def training_on_table(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(table(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_maps(impl, case):
    c = channels(case)
    made = _signed(drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1)))
    return _through(made, case, case.given_tensor(maps(case, c), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_one_image(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.given_tensor(maps(case, c, n=1), "x"))


@training.scenario(dtypes=SINGLE)
def training_on_two_values(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _through(made, case, case.tensor((2, c), std=2.0))


def _frozen(impl, case, trains):
    """Output and gradients where some need none: the first layer's x, weight and bias in fine-tuning."""
    c = channels(case)
    made = drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1)).train(trains)
    x, dy = case.given_tensor(table(case, c), "x"), case.tensor((1, c), 1.0, name="dy")
    seen = {}
    for constant in (("x",), ("weight",), ("bias",), LEARNED):
        leaf = x.clone().requires_grad_("x" not in constant)
        for name in LEARNED:
            getattr(made, name).requires_grad_(name not in constant).grad = None
        y = made(leaf)
        y.backward((dy + 0.5 * x).to(y.dtype))
        leaves = {"x": leaf, **{name: getattr(made, name) for name in LEARNED}}
        found = {f"gradient of {name}": held.grad for name, held in leaves.items() if name not in constant} | {"y": y}
        seen |= {f"{name} where {' and '.join(constant)} needs none": value for name, value in found.items()}
    return seen


@training.scenario(dtypes=SINGLE)
def training_with_frozen_parameters(impl, case):
    return _frozen(impl, case, True)


ranks = layer.group("sequences and volumes: any rank from 2 to 5", points=0.5)


def _ranked(impl, case, draw):
    c = channels(case)
    made = drawn_layer(impl, case, c, momentum=0.5)
    x = rearranged(case.given_tensor(draw(case, c), "x"))
    in_eval = eval_far_from_eps(made, x)
    before = made.running_var.clone()
    seen = normalised(made, x, case.tensor(x.shape, name="dy"))
    # With a momentum of 0.5, whichever side it weighs, half of the old value is still there.
    came = shares(made.running_var - 0.5 * before)
    now = {"running_mean": made.running_mean, "what came into running_var, as shares of its sum": came}
    # Whatever factor a mistake brings in, the same values in a table have it too.
    rows = x.detach().movedim(1, -1).reshape(-1, c)
    alone = drawn_layer(impl, case, c, momentum=0.5)
    table_of = copy.deepcopy(alone)
    y, y_of_rows = alone(x.detach()).movedim(1, -1).reshape(-1, c), table_of(rows)
    apart = {"y": y - y_of_rows, "running_var": alone.running_var - table_of.running_var}
    return {**seen, **now, "y in eval": in_eval, **{f"{k}, less that of a table of them": v for k, v in apart.items()}}


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
    made = drawn_layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    before = aliased(made)
    made(case.given_tensor(table(case, c), "x"))
    x = case.given_tensor(maps(case, c), "x").requires_grad_()
    made(x).sum().backward()
    history = {name: getattr(v, "requires_grad", False) for name, v in state_of(made).items()}
    return {
        **state_of(made),
        "batches counted": int(made.num_batches_tracked),
        "replaced by new tensors": replaced(made, before),
        "with autograd history": flagged(**history),
    }


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum(impl, case):
    # By position, and 1: the last batch alone.
    c = channels(case)
    made = drawn_layer(impl, case, c, 0.1, 1.0)
    made(case.given_tensor(maps(case, c), "x"))
    return state_of(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_with_default_momentum(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c)
    made(case.given_tensor(table(case, c), "x"))
    return state_of(made)


@remembering.scenario(dtypes=SINGLE)
def statistics_without_gradients(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, momentum=case.number("momentum", 0.15, 0.4))
    with torch.no_grad():
        made(case.given_tensor(maps(case, c), "x"))
        recorded = torch.is_grad_enabled()
    return {**state_of(made), "gradients are recorded afterwards where they were not": recorded}


@remembering.scenario(dtypes=SINGLE)
def statistics_with_momentum_zero(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, momentum=0.0)
    made(case.given_tensor(maps(case, c), "x"))
    return state_of(made)


evaluating = layer.group("eval: the running statistics normalise, and stay as they are", points=1)


def _evaluated(made, case, x):
    before = copy.deepcopy(made.state_dict())
    seen = _through(made.eval(), case, x)
    after = made.state_dict()
    return {**seen, "changed in eval": flagged(**{key: not torch.equal(after[key], v) for key, v in before.items()})}


@evaluating.scenario(dtypes=SINGLE)
def eval_on_table(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1))
    return _evaluated(made, case, case.given_tensor(table(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_on_maps(impl, case):
    c = channels(case)
    made = _signed(drawn_layer(impl, case, c, eps=case.number("eps", 0.5, 1)))
    return _evaluated(made, case, case.given_tensor(maps(case, c), "x"))


@evaluating.scenario(dtypes=SINGLE)
def eval_with_frozen_parameters(impl, case):
    return _frozen(impl, case, False)


@evaluating.scenario(dtypes=SINGLE)
def eval_with_default_eps(impl, case):
    # A variance so small that the default eps shows.
    c = channels(case)
    made = drawn_layer(impl, case, c)
    with torch.no_grad():
        made.running_var.mul_(1e-5)
    x = case.given_tensor(0.01 * table(case, c), "x")
    seen = {"y": made.eval()(x)}
    # None at all is one, too.
    made = drawn_layer(impl, case, c, eps=0.0)
    with torch.no_grad():
        made.running_var.mul_(1e-5)
    return {**seen, "y with eps 0": made.eval()(x)}


@evaluating.scenario(dtypes=SINGLE, within=0.05)
def eval_of_one_value(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c)
    return {"y": made.eval()(case.tensor((1, c), std=2.0))}


cumulative = layer.group("momentum=None: all batches weigh alike", points=0.5)


def _averaged(impl, case, c, sizes):
    made = drawn_layer(impl, case, c, momentum=None)
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
    made = drawn_layer(impl, case, c, momentum=None)
    with torch.no_grad():
        made.num_batches_tracked.fill_(case.integer(3, 6))
    made(case.given_tensor(maps(case, c), "x"))
    return {"running_mean": made.running_mean}


@cumulative.scenario(dtypes=SINGLE)
def average_of_variances(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, momentum=None)
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
        made = drawn_layer(impl, case, c, momentum=momentum)
        with torch.no_grad():
            made.running_var.zero_()
        before = aliased(made)
        made(x)
        seen[momentum] = made.running_var
        if momentum is None:
            moved = replaced(made, before)
    return {
        "running_var with momentum None, in that with momentum 0.5": seen[None] / seen[0.5],
        "replaced by new tensors": moved,
    }


@cumulative.scenario(dtypes=SINGLE, within=1e-3)
def average_in_eval(impl, case):
    # The momentum has no say there: a layer without one and a layer with one are the same.
    c = channels(case)
    made, other = (drawn_layer(impl, case, c, momentum=momentum) for momentum in (None, 0.5))
    with torch.no_grad():
        for name in LEARNED + REMEMBERED:
            getattr(other, name).copy_(getattr(made, name))
    before = copy.deepcopy(made.state_dict())
    x = case.given_tensor(maps(case, c), "x")
    apart = made.eval()(x) - other.eval()(x)
    moved = flagged(**{key: not torch.equal(made.state_dict()[key], v) for key, v in before.items()})
    return {"y, less that of a layer with a momentum": apart, "changed in eval": moved}


switches = layer.group("affine=False and track_running_stats=False", points=0.5)


@switches.scenario(dtypes=SINGLE, within=FROM_Y)
def layer_without_parameters(impl, case):
    c = channels(case)
    made = drawn_layer(impl, case, c, 1e-5, 0.1, False, names=REMEMBERED)
    x = case.given_tensor(maps(case, c), "x")
    in_eval = eval_far_from_eps(made, x)
    before = {name: buffer.clone() for name, buffer in state_of(made).items()}
    seen = {**own_names(made), **normalised(made, x, case.tensor(x.shape, name="dy")), "y in eval": in_eval}
    moved = flagged(**{name: not torch.equal(buffer, before[name]) for name, buffer in state_of(made).items()})
    return {**seen, "moved in training": moved}


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
    by_position = drawn_layer(impl, case, c, 1e-5, 0.1, True, False, names=())
    by_name = drawn_layer(impl, case, num_features=c, affine=False, track_running_stats=False, names=())
    for words, made in (("affine", by_position), ("not affine", by_name)):
        seen |= {f"{name}, {words}": held for name, held in own_names(made).items()}
        for mode, trains in MODES.items():
            leaf = x.clone().requires_grad_()
            y = made.train(trains)(leaf)
            y.backward(dy)
            seen[f"y in {mode}, {words}"] = y
            seen[f"gradient of x in {mode}, {words}, of spread 1"] = of_spread_1(leaf.grad)
    return seen
