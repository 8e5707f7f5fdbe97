"""Problem set 5: what is asked of the pieces of `course_lib.sync`, on two, three and four ranks."""

import copy
import threading

import torch
from torch import nn

from course_lib.checks.piece import Piece, WrongReturn, named
from course_lib.ranks import RankError, count_collectives, run_ranks
from course_lib.sync import groups_of

# Ranks are threads of `course_lib.ranks`, and share the case: everything is drawn before they start. The mean of every
# shard is its own, far from the others', so that no mistake about the spread between shards stays hidden. Groups that
# ask for something else than uneven shards have even ones, and look at values that an average of averages gets right.

#: Seconds the ranks of a scenario may take. With those for stopping them it is less than `observe` allows.
RANKS_LIMIT = 6.0


class TimeLimit(Exception):
    """Ranks that had to be stopped. Seeing this name, `observe` runs no further scenario."""


def _on_ranks(step, ranks):
    """What `step(rank)` returns on every rank, as a list.

    Raises:
        TimeLimit: a rank did not come back.
        RankError: some ranks raised, or wait for a collective that others never join; in words for a student.
        Exception: what all ranks raised alike.
    """
    try:
        return run_ranks(step, ranks, timeout=RANKS_LIMIT)
    except RankError as error:
        failed = error
    raise _in_plain_words(failed, ranks)


def _in_plain_words(failed, ranks):
    """The error of a run, whichever rank happened to come first, with the line of the student's code in it."""
    errors = dict(sorted(failed.errors.items()))
    waiting, busy = {}, []
    for rank, where in sorted(failed.unfinished.items()):
        _, found, place = where.partition("waits in ")
        waiting.setdefault(place, []).append(rank) if found else busy.append(rank)
    if busy:
        running = any(thread.name in {f"rank {rank}" for rank in busy} for thread in threading.enumerate())
        stopped = " It could not be stopped and is still running: restart the kernel." if running else ""
        return TimeLimit(f"stopped after {RANKS_LIMIT:g} s: does rank {_listed(busy)} ever end?{stopped}")
    waits = "; ".join(f"rank {_listed(left)} left waiting in {place}" for place, left in waiting.items())
    if not errors:
        return RankError(f"{waits}: all ranks of a group have to call the same collectives, in the same order")
    rank, error = next(iter(errors.items()))
    alike = len(errors) == ranks and all(type(other) is type(error) for other in errors.values())
    if alike or isinstance(error, NotImplementedError):
        return error
    message = f"rank {rank} of {ranks} raised {type(error).__name__}: {error}"
    return RankError(message + f"; {waits}" * bool(waits)).with_traceback(error.__traceback__)


def _listed(items):
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def _tensor(value, name, shape=None):
    """`value`, without its history, where it is a tensor of this shape.

    Raises:
        WrongReturn: it is something else.
    """
    if not isinstance(value, torch.Tensor):
        raise WrongReturn(f"expected {name} to be a tensor, got {type(value).__name__}")
    if shape is not None and value.shape != shape:
        raise WrongReturn(f"expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")
    return value.detach()


def _count(n):
    """n as a float, whatever kind of number it is: the kind is asked for in one place only."""
    try:
        return float(n)
    except (TypeError, ValueError):
        raise WrongReturn(f"expected n to be a number, got {type(n).__name__}") from None


def _by_rank(results):
    """[{name: value}] of the ranks as one set of observations."""
    return {f"{name} on rank {rank}": value for rank, seen in enumerate(results) for name, value in seen.items()}


# --- merge_moments ----------------------------------------------------------------------------------------------

merge = Piece("sync.merge_moments", call="merge_moments((n_a, mean_a, m2_a), (n_b, mean_b, m2_b)) → (n, mean, m2)")


def _side(case, name, channels, n):
    """(n, mean, m2) of n values per channel; the mean of an empty side is some number."""
    mean = case.tensor((channels,), std=3.0, name=f"mean_{name}")
    m2 = case.given_tensor(case.uniform(1, 4, channels) * max(n - 1, 0), f"m2_{name}")
    return n, mean, m2


def _merged(impl, *sides):
    """The union of all sides, merged from the left."""
    union = sides[0]
    for side in sides[1:]:
        union = impl(union, side)
        named(union, "n", "mean", "m2")
    return union


def _values(union):
    union = named(union, "n", "mean", "m2")
    return {"n": _count(union["n"]), **{name: _tensor(union[name], name) for name in ("mean", "m2")}}


both = merge.group("the union of two sides, and of three", points=1.5)


@both.scenario()
def union_of_two(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _side(case, "a", c, case.integer(2, 5)), _side(case, "b", c, case.integer(6, 9))))


@both.scenario()
def union_of_three(impl, case):
    c, sizes = case.integer(2, 4), (1, case.integer(3, 9), 1)
    return _values(_merged(impl, *(_side(case, name, c, n) for name, n in zip("abc", sizes, strict=True))))


nothing = merge.group("either side empty, or both", points=0.5)


@nothing.scenario()
def union_with_an_empty_second_side(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _side(case, "a", c, case.integer(2, 9)), _side(case, "b", c, 0)))


@nothing.scenario()
def union_with_an_empty_first_side(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _side(case, "a", c, 0), _side(case, "b", c, case.integer(2, 9))))


@nothing.scenario()
def union_after_two_empty_sides(impl, case):
    # What becomes of the mean of nothing is nobody's business, as long as the next merge does not suffer from it.
    c = case.integer(2, 4)
    sides = _side(case, "a", c, 0), _side(case, "b", c, 0), _side(case, "c", c, case.integer(2, 9))
    return _values(_merged(impl, *sides))


contract = merge.group("n an int, and the sides left as they are", points=0.5)


@contract.scenario(dtypes=("float32",))
def union_leaves_its_sides_alone(impl, case):
    # Of two sides of one size, the mean comes out right even where the sizes are not looked at.
    c, n = case.integer(2, 4), case.integer(2, 5)
    union = named(impl(_side(case, "a", c, n), _side(case, "b", c, n)), "n", "mean", "m2")
    merged = _tensor(union["mean"], "mean").to(case.torch_dtype)
    return {"mean": merged, "type of n": type(union["n"]).__name__, "inputs changed": case.changed()}


# --- shards -----------------------------------------------------------------------------------------------------


def _shards(case, sizes, spatial=(), constant=None):
    """One shard a rank, with so many samples each. The values of a constant one are all the same in a channel."""
    channels = case.integer(3, 4)
    shards = []
    for rank, size in enumerate(sizes):
        step = (rank - (len(sizes) - 1) / 2) * case.uniform(1.5, 2.5, (channels,) + (1,) * len(spatial))
        std = 0.0 if rank == constant else case.uniform(1, 2)
        shards.append(case.given_tensor(case.draw((size, channels, *spatial), step, std), f"x of rank {rank}"))
    return shards


def _shuffled(case, sizes):
    """The same sizes, on other ranks."""
    rest, order = list(sizes), []
    while rest:
        order.append(rest.pop(case.integer(0, len(rest) - 1)))
    return order


def _uneven(case):
    return _shuffled(case, (1, case.integer(2, 3), case.integer(5, 6)))


def _maps(case):
    """Height and width, of different lengths."""
    return case.choice([(2, 3), (3, 2), (4, 3)])


# --- sync_moments -----------------------------------------------------------------------------------------------

moments = Piece("sync.sync_moments", call="sync_moments(x, group=None) → (n, mean, var)")


def _moments(impl, shards, ask):
    """On every rank, what `ask(n, mean, var)` makes of the result; `groups` ranks share their statistics."""
    return _by_rank(_on_ranks(lambda rank: ask(**_of_moments(impl, shards[rank])), len(shards)))


def _of_moments(impl, *args):
    result = named(impl(*args), "n", "mean", "var")
    return {"n": result["n"], **{name: _tensor(result[name], name) for name in ("mean", "var")}}


def _all_of_it(n, mean, var):
    # In float64, whatever came: which dtype the statistics have is not asked for.
    return {"n": _count(n), "mean": mean.double(), "var": var.double()}


even = moments.group("n, mean and biased variance over two ranks", points=1)


@even.scenario()
def moments_of_two_tables(impl, case):
    return _moments(impl, _shards(case, [case.integer(4, 6)] * 2), _all_of_it)


@even.scenario()
def moments_of_two_ranks_with_maps(impl, case):
    return _moments(impl, _shards(case, [case.integer(2, 3)] * 2, _maps(case)), _all_of_it)


uneven = moments.group("shards of different sizes", points=0.5)


@uneven.scenario()
def moments_of_uneven_shards(impl, case):
    return _moments(impl, _shards(case, _uneven(case), _maps(case)), _all_of_it)


empty = moments.group("an empty shard, and one of a single value", points=0.75)


@empty.scenario()
def moments_with_an_empty_shard(impl, case):
    sizes = _shuffled(case, (0, case.integer(2, 3), case.integer(4, 5)))
    return _moments(impl, _shards(case, sizes, (3,), constant=case.integer(0, 2)), _all_of_it)


@empty.scenario()
def moments_with_an_empty_and_a_single_shard(impl, case):
    sizes = _shuffled(case, (0, 1, case.integer(2, 3), case.integer(4, 5)))
    return _moments(impl, _shards(case, sizes), _all_of_it)


once = moments.group("one collective", points=0.5)


@once.scenario()
def moments_take_one_collective(impl, case):
    shards = _shards(case, [case.integer(2, 4)] * 3, (2,))

    def step(rank):
        with count_collectives() as calls:
            mean = _of_moments(impl, shards[rank])["mean"]
        return {"mean": mean.double(), "collectives": len(calls)}

    return _by_rank(_on_ranks(step, 3))


grouped = moments.group("the ranks of the given group, and no others", points=0.25)


@grouped.scenario()
def moments_of_two_groups(impl, case):
    shards = _shards(case, [case.integer(2, 4)] * 4, (2,))

    def step(rank):
        result = _of_moments(impl, shards[rank], groups_of(2))
        return {"n": _count(result["n"]), "mean": result["mean"].double()}

    return _by_rank(_on_ranks(step, 4))


contract = moments.group("n an int, x left as it is", points=0.5)


@contract.scenario(dtypes=("float32",))
def moments_leave_x_alone(impl, case):
    shards = _shards(case, [case.integer(2, 4)] * 2, (2,))
    seen = _moments(
        impl, shards, lambda n, mean, var: {"mean": mean.to(case.torch_dtype), "type of n": type(n).__name__}
    )
    return {**seen, "inputs changed": case.changed()}


# --- SyncBatchNormFunction --------------------------------------------------------------------------------------

function = Piece(
    "sync.SyncBatchNormFunction",
    call="SyncBatchNormFunction.apply(x, weight, bias, running_mean, running_var, momentum, eps, group) → y",
)
_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def _applied(impl, case, shards, *, without=(), groups=None, dtype=None):
    """One step on every rank, forward and backward: [{"y", "dx", "dweight", "dbias", "running_mean", …}]."""
    c = shards[0].shape[1]
    low = {"weight": 0.5, "bias": -2, "running_mean": -2, "running_var": 0.5}
    given = {name: case.given_tensor(case.uniform(low[name], 2, c), name) for name in _PARAMETERS}
    momentum, eps = case.number("momentum", 0.2, 0.4), case.number("eps", 0.5, 1)
    # A mean that is not zero, and a slope along x: both coupling terms matter.
    noise = [case.draw(tuple(x.shape), 1.0) for x in shards]
    dys = [case.given_tensor(0.7 * x.double().numpy() + e, "dy") for x, e in zip(shards, noise, strict=True)]

    def step(rank):
        # Parameters and buffers of its own, as a process has them. x is watched for changes.
        x = shards[rank].detach().requires_grad_()
        mine = {name: None if name in without else value.clone() for name, value in given.items()}
        leaves = {"dx": x, "dweight": mine["weight"], "dbias": mine["bias"]}
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items() if leaf is not None}
        group = groups and groups_of(groups)
        with count_collectives() as forward:
            y = impl.apply(x, *mine.values(), momentum, eps, group)
        seen = {"y": _tensor(y, "y", x.shape)}
        # A loss whose gradient at y is dy: handed dy itself, autograd imports sympy first, for seconds, in every rank.
        loss = (y * dys[rank]).sum()
        with count_collectives() as backward:
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        seen.update(zip(leaves, gradients, strict=True))
        seen.update((name, mine[name]) for name in ("running_mean", "running_var"))
        return {**seen, "collectives forward": len(forward), "collectives backward": len(backward)}

    return _on_ranks(step, len(shards))


def _only(results, *names):
    return _by_rank([{name: seen[name] for name in names} for seen in results])


def _mean_of_y(results):
    """Per channel, over all shards, which are even: the bias, whatever was done about the variance."""
    return torch.stack([seen["y"].transpose(0, 1).flatten(1).mean(1) for seen in results]).mean(0)


output = function.group("y, from the statistics of all shards", points=1)


@output.scenario()
def output_of_two_tables(impl, case):
    return _only(_applied(impl, case, _shards(case, [case.integer(4, 6)] * 2)), "y")


@output.scenario()
def output_of_uneven_maps(impl, case):
    return _only(_applied(impl, case, _shards(case, _uneven(case), _maps(case))), "y")


through = function.group("dx, coupled to all shards", points=1.25)


@through.scenario()
def gradient_of_two_tables(impl, case):
    return _only(_applied(impl, case, _shards(case, [case.integer(4, 6)] * 2)), "dx")


@through.scenario()
def gradient_of_uneven_maps(impl, case):
    return _only(_applied(impl, case, _shards(case, _uneven(case), _maps(case))), "dx")


parameters = function.group("dweight and dbias of the rank's own shard", points=0.5)


@parameters.scenario()
def parameter_gradients(impl, case):
    return _only(_applied(impl, case, _shards(case, _uneven(case), (2,))), "dweight", "dbias")


running = function.group("running statistics in place, with the unbiased variance over the total n", points=0.75)


@running.scenario()
def running_statistics(impl, case):
    results = _applied(impl, case, _shards(case, _uneven(case), _maps(case)))
    return _only(results, "running_mean", "running_var")


empty = function.group("an empty shard, and one of a single value", points=0.5)


@empty.scenario()
def step_with_an_empty_shard(impl, case):
    sizes = _shuffled(case, (0, case.integer(2, 3), case.integer(4, 5)))
    shards = _shards(case, sizes, (3,), constant=case.integer(0, 2))
    return _only(_applied(impl, case, shards), "y", "dx", "dweight", "dbias")


@empty.scenario()
def step_with_an_empty_and_a_single_shard(impl, case):
    sizes = _shuffled(case, (0, 1, case.integer(2, 3), case.integer(4, 5)))
    return _only(_applied(impl, case, _shards(case, sizes)), "y", "dx")


@empty.scenario()
def step_with_two_values(impl, case):
    # As few as can be: one value on each rank.
    return _only(_applied(impl, case, _shards(case, [1, 1])), "y", "dx", "running_var")


once = function.group("one collective forward and one backward", points=0.5)


@once.scenario()
def collectives_of_a_step(impl, case):
    results = _applied(impl, case, _shards(case, [case.integer(2, 4)] * 3, (2,)))
    return {"mean of y": _mean_of_y(results), **_only(results, "collectives forward", "collectives backward")}


grouped = function.group("the ranks of the given group, and no others", points=0.25)


@grouped.scenario()
def step_of_two_groups(impl, case):
    results = _applied(impl, case, _shards(case, [case.integer(2, 4)] * 4, (2,)), groups=2)
    return _only(results, "y", "dx")


optional = function.group("without weight, bias and running statistics", points=0.5)


@optional.scenario()
def step_without_anything(impl, case):
    shards = _shards(case, [case.integer(4, 6)] * 2)
    return _only(_applied(impl, case, shards, without=_PARAMETERS), "y", "dx")


@optional.scenario()
def step_without_bias(impl, case):
    shards = _shards(case, [case.integer(4, 6)] * 2)
    return _only(_applied(impl, case, shards, without=("bias",)), "y", "dx", "dweight")


contract = function.group("y in the dtype of x, x left as it is", points=0.25)


@contract.scenario(dtypes=("float32",))
def output_in_float32(impl, case):
    results = _applied(impl, case, _shards(case, [case.integer(4, 6)] * 2, (2,)))
    dtypes = {f"dtype of y on rank {r}": str(seen["y"].dtype) for r, seen in enumerate(results)}
    return {"mean of y": _mean_of_y(results).to(case.torch_dtype), **dtypes, "inputs changed": case.changed()}


# --- convert_sync_batchnorm -------------------------------------------------------------------------------------

convert = Piece("sync.convert_sync_batchnorm", call="convert_sync_batchnorm(model, group=None) → model")


class _Branch(nn.Module):
    """A module that keeps its layers as attributes."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))


def _converted(impl, model, *args):
    result = impl(model, *args)
    if not isinstance(result, nn.Module):
        none = ": is there a return?" if result is None else ""
        raise WrongReturn(f"expected the model to be returned, got {type(result).__name__}{none}")
    return result


def _kind(module):
    """A layer's class, by name: the grader's reference lives in a second copy of `course_lib.sync`."""
    cls = type(module)
    if cls.__name__ == "SyncBatchNorm" and cls.__module__.endswith("sync"):
        return "course_lib.sync.SyncBatchNorm"
    return f"torch.nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.") else cls.__name__


def _flat(case):
    """A linear layer and three BatchNorm layers with settings of their own, all of them direct children."""
    c = case.integer(2, 4)
    return nn.Sequential(
        case.fill(nn.Linear(c, c)),
        case.fill(nn.BatchNorm1d(c, eps=case.number("eps", 0.1, 1), momentum=case.number("momentum", 0.2, 0.9))),
        case.fill(nn.BatchNorm2d(c, momentum=None)),
        case.fill(nn.BatchNorm3d(c, affine=False)),
    )


def _linear(model):
    """Weights that no conversion is about."""
    return {"weight of the linear layer": model[0].weight}


replaced = convert.group("every BatchNorm layer of a nested model, and no other layer", points=0.75)


@replaced.scenario()
def layers_of_a_nested_model(impl, case):
    c = case.integer(2, 4)
    others = nn.Sequential(nn.InstanceNorm2d(c, affine=True), nn.GroupNorm(1, c), nn.LayerNorm(c))
    volumes = nn.ModuleDict({"deep": nn.ModuleList([nn.BatchNorm3d(c), nn.Identity()])})
    model = nn.Sequential(nn.Linear(c, c), nn.BatchNorm1d(c), _Branch(c), others, volumes)
    before = case.fill(model)
    after = _converted(impl, model)
    kinds = {f"layer {name}": _kind(layer) for name, layer in after.named_modules() if not list(layer.children())}
    returned = "the model itself" if after is before else "another model"
    return {"returned": returned, **kinds, **_linear(after)}


root = convert.group("a model that is itself a BatchNorm layer", points=0.5)


@root.scenario()
def layer_as_model(impl, case):
    kind = case.choice([nn.BatchNorm1d, nn.BatchNorm3d])
    layer = case.fill(kind(case.integer(2, 4)))
    after = _converted(impl, layer)
    return {"returned": _kind(after), "weight": getattr(after, "weight", None)}


kept = convert.group("weights, running statistics and settings kept", points=0.75)


@kept.scenario()
def state_of_layers(impl, case):
    model = _flat(case)
    for layer in (model[1], model[2], model[3]):
        layer.num_batches_tracked.fill_(case.integer(3, 9))
    state = _converted(impl, model).state_dict()
    return {"names in the state_dict": ", ".join(state), **state}


@kept.scenario()
def settings_of_layers(impl, case):
    model = _flat(case)
    model.append(nn.BatchNorm1d(model[0].out_features, track_running_stats=False))
    after = _converted(impl, model)
    settings = {
        f"{name} of layer {i}": getattr(after[i], name, "missing")
        for i in range(1, len(after))
        for name in ("num_features", "eps", "momentum")
    }
    return {**settings, "names in the state_dict": ", ".join(after.state_dict()), **_linear(after)}


modes = convert.group("mode and requires_grad kept", points=0.25)


@modes.scenario()
def modes_of_layers(impl, case):
    model = _flat(case)
    evaluating = case.integer(1, 3)
    model[evaluating].eval()
    after = _converted(impl, model)
    return {**{f"training of layer {i}": after[i].training for i in range(4)}, **_linear(after)}


@modes.scenario()
def frozen_parameters(impl, case):
    model = _flat(case)
    frozen = case.choice(["weight", "bias"])
    getattr(model[case.integer(1, 2)], frozen).requires_grad_(False)
    after = _converted(impl, model)
    learns = {f"requires_grad of {name}": parameter.requires_grad for name, parameter in after.named_parameters()}
    return {**learns, **_linear(after)}


grouped = convert.group("the given group in every layer", points=0.25)


@grouped.scenario()
def group_of_layers(impl, case):
    model = _flat(case)

    def step(rank):
        group = groups_of(2)
        after = _converted(impl, copy.deepcopy(model), group)
        groups = {f"group of layer {i}": _group(getattr(after[i], "process_group", None), group) for i in range(1, 4)}
        return {**groups, **_linear(after)}

    return _by_rank(_on_ranks(step, 4))


@grouped.scenario()
def no_group_of_layers(impl, case):
    after = _converted(impl, _flat(case))
    groups = {f"group of layer {i}": _group(getattr(after[i], "process_group", None), None) for i in range(1, 4)}
    return {**groups, **_linear(after)}


def _group(group, given):
    return "None: all ranks" if group is None else "the given one" if group is given else "another one"
