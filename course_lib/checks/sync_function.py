"""Problem set 5: what is asked of `SyncBatchNormFunction`, forward and backward, on two, three and four ranks."""

import numpy as np
import torch

from course_lib.checks.piece import Piece
from course_lib.checks.sync_inputs import VOLUMES, each_empty, expect_tensor, maps, shards, shuffled, uneven
from course_lib.checks.sync_ranks import by_rank, on_ranks
from course_lib.ranks import count_collectives
from course_lib.sync import groups_of

__all__ = ["function"]

function = Piece(
    "sync.SyncBatchNormFunction",
    call="SyncBatchNormFunction.apply(x, weight, bias, running_mean, running_var, momentum, eps, group) → y",
)
_BUFFERS = ("running_mean", "running_var")
_PARAMETERS = ("weight", "bias", *_BUFFERS)
_NEEDS_NONE = {name: f" where {name} needs none" for name in ("x", "weight", "bias")}


def _ready(impl, case, batch, *, without=(), frozen=(), dtype=None):
    """One step on a batch of shards, drawn: called on a rank, it goes forward.

    Args:
        batch: the shards of all ranks.
        without: which of weight, bias and buffers are None.
        frozen: which of x, weight and bias need no gradient.
        dtype: name of the batch's, where it is not the case's.

    Returns:
        `forward(rank, group) → (seen, backward)`. Seen are y, the buffers and what it cost; `backward()` adds the
        gradients, and the names of what it has changed.
    """
    c = batch[0].shape[1]
    low = {"weight": 0.5, "bias": -2, "running_mean": -2, "running_var": 0.5}
    given = {name: case.given_tensor(case.uniform(low[name], 2, c), name, dtype=dtype) for name in _PARAMETERS}
    momentum, eps = case.number("momentum", 0.2, 0.4), case.number("eps", 0.5, 1)
    # A mean that is not zero, and a slope along x: both coupling terms matter.
    noise = [case.draw(tuple(x.shape), 1.0) for x in batch]
    dys = [
        case.given_tensor(0.7 * x.double().numpy() + e, "dy", dtype=dtype) for x, e in zip(batch, noise, strict=True)
    ]

    def forward(rank, group=None, without=without, frozen=frozen):
        # Parameters and buffers of its own, as a process has them. x is watched for changes.
        mine = {name: None if name in without else value.clone() for name, value in given.items()}
        places = {name: value.data_ptr() for name, value in mine.items() if value is not None}
        x = batch[rank].detach()
        leaves = {"dx": x, "dweight": mine["weight"], "dbias": mine["bias"]}
        leaves = {name: v.requires_grad_() for name, v in leaves.items() if v is not None and name[1:] not in frozen}
        with count_collectives() as calls:
            y = impl.apply(x, *mine.values(), momentum, eps, group)
        seen = {"y": expect_tensor(y, "y", x.shape), "collectives forward": len(calls)}
        for name in _BUFFERS:
            if name not in without:
                seen |= {name: mine[name], f"{name} in its old place": mine[name].data_ptr() == places[name]}
        came = []
        if y.requires_grad:
            y.register_hook(lambda dy: came.append((dy, dy.clone())))

        def backward():
            # A loss whose gradient at y is dy: handed dy itself, autograd imports sympy first, for seconds, in every
            # rank.
            loss = (y * dys[rank]).sum()
            with count_collectives() as calls:
                gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            kept = [(f"{name} of rank {rank}", mine[name], given[name]) for name in ("weight", "bias")]
            kept += [(f"dy of rank {rank}", *pair) for pair in came]
            changed = [name for name, now, then in kept if now is not None and not torch.equal(now.detach(), then)]
            seen.update(zip(leaves, gradients, strict=True))
            return {**seen, "collectives backward": len(calls), "changed": changed}

        return seen, backward

    return forward


def _applied(impl, case, batch, *, groups=None, **options):
    """One step on every rank, forward and backward: what was seen on each."""
    step = _ready(impl, case, batch, **options)
    return on_ranks(lambda rank: step(rank, groups and groups_of(groups))[1](), len(batch))


def _cost(seen):
    return seen["collectives forward"] + seen["collectives backward"]


def _all_applied(steps, ranks, *names, usual=None):
    """Of several steps {words: step}, observations of these names, of all ranks.

    As in a network, all go forward before the first goes backward, which is the last.

    Args:
        usual: words of the step that no other may need more collectives than. How many it should need is another
            group's business.
    """

    def step(rank):
        backwards = {words: forward(rank)[1] for words, forward in steps.items()}
        seen = {words: backwards[words]() for words in reversed(backwards)}
        cheap = {words: _cost(seen[words]) <= _cost(seen[usual]) for words in steps if usual not in (None, words)}
        return {
            **{name + words: seen[words][name] for words in steps for name in names if name in seen[words]},
            **{f"no more collectives{words}": value for words, value in cheap.items()},
        }

    return by_rank(on_ranks(step, ranks))


def _only(results, *names):
    return by_rank([{name: seen[name] for name in names} for seen in results])


def _mean_of_y(results):
    """Per channel, over all shards, which are even: the bias, whatever was done about the variance."""
    return torch.stack([seen["y"].transpose(0, 1).flatten(1).mean(1) for seen in results]).mean(0)


def _maps_and_volumes(impl, case):
    batches = {" of maps": shards(case, uneven(case), maps(case)), " of volumes": shards(case, uneven(case), VOLUMES)}
    return {words: _ready(impl, case, batch) for words, batch in batches.items()}


output = function.group("y, from the statistics of all shards", points=1)


@output.scenario()
def output_of_two_tables(impl, case):
    return _only(_applied(impl, case, shards(case, [case.integer(4, 6)] * 2)), "y")


@output.scenario()
def output_of_uneven_maps(impl, case):
    return _all_applied(_maps_and_volumes(impl, case), 3, "y")


@output.scenario(dtypes=("float32",))
def output_in_float32(impl, case):
    return _only(_applied(impl, case, shards(case, [case.integer(4, 6)] * 2)), "y")


through = function.group("dx, coupled to all shards", points=1.25)


@through.scenario()
def gradient_of_two_tables(impl, case):
    return _only(_applied(impl, case, shards(case, [case.integer(4, 6)] * 2)), "dx")


@through.scenario()
def gradient_of_uneven_maps(impl, case):
    return _all_applied(_maps_and_volumes(impl, case), 3, "dx")


@through.scenario()
def gradient_beside_frozen_parameters(impl, case):
    # What weight and bias do not need, x does.
    frozen = {" with a frozen weight": ["weight"], " with both frozen": ["weight", "bias"]}
    batches = {words: shards(case, [case.integer(3, 4)] * 2, (2,)) for words in frozen}
    steps = {words: _ready(impl, case, batches[words], frozen=frozen[words]) for words in frozen}
    return _all_applied(steps, 2, "dx")


@through.scenario(dtypes=("float32",))
def gradient_in_float32(impl, case):
    return _only(_applied(impl, case, shards(case, [case.integer(4, 6)] * 2)), "dx")


parameters = function.group("dweight and dbias of the rank's own shard", points=0.5)


@parameters.scenario()
def parameter_gradients(impl, case):
    # The first layer of a network: its x is data, and needs no gradient.
    frozen = {words: [name] for name, words in _NEEDS_NONE.items()}
    steps = {
        words: _ready(impl, case, shards(case, uneven(case), (2,)), frozen=names)
        for words, names in {"": [], **frozen}.items()
    }
    return _all_applied(steps, 3, "dweight", "dbias", usual="")


@parameters.scenario(dtypes=("float32",))
def parameter_gradients_in_float32(impl, case):
    return _only(_applied(impl, case, shards(case, [case.integer(4, 6)] * 2)), "dweight", "dbias")


running = function.group("running statistics in place, with the unbiased variance over the total n", points=0.75)


@running.scenario()
def running_statistics(impl, case):
    frozen = {"": [], _NEEDS_NONE["x"]: ["x"]}
    steps = {
        words: _ready(impl, case, shards(case, uneven(case), maps(case)), frozen=frozen[words]) for words in frozen
    }
    return _all_applied(steps, 3, *_BUFFERS, *(f"{name} in its old place" for name in _BUFFERS))


# Where moments are float64 and buffers are not, a conversion makes a copy, and the copy is nobody's buffer. In exact
# arithmetic there is no such mistake.
@running.scenario(dtypes=("float32",), rounding=True)
def running_statistics_in_float32(impl, case):
    return _only(_applied(impl, case, shards(case, uneven(case), (3,))), *_BUFFERS)


@running.scenario()
def running_statistics_of_two_groups(impl, case):
    sizes = [case.integer(1, 2), case.integer(3, 4), case.integer(3, 4), case.integer(1, 2)]
    return _only(_applied(impl, case, shards(case, sizes, (2,)), groups=2), *_BUFFERS)


empty = function.group("an empty shard, and one of a single value", points=0.5)


@empty.scenario()
def step_with_an_empty_shard(impl, case):
    # Every step by itself: a rank that stays away would meet the others in the next one.
    seen = {}
    for words, batch in each_empty(case).items():
        seen |= _all_applied({words: _ready(impl, case, batch)}, 3, "y", "dx", "dweight", "dbias", *_BUFFERS)
    return seen


@empty.scenario()
def step_with_an_empty_and_a_single_shard(impl, case):
    sizes = shuffled(case, (0, 1, case.integer(2, 3), case.integer(4, 5)))
    return _only(_applied(impl, case, shards(case, sizes)), "y", "dx")


@empty.scenario()
def step_with_two_values(impl, case):
    # As few as can be, one value on each rank; and none at all, of which there is nothing to learn.
    two, none = (_ready(impl, case, shards(case, [size] * 2)) for size in (1, 0))

    def step(rank):
        seen, nothing = two(rank)[1](), none(rank)[0]
        learned = {f"{name} of nothing": nothing[name] for name in _BUFFERS}
        return {**{name: seen[name] for name in ("y", "dx", "running_var")}, **learned}

    return by_rank(on_ranks(step, 2))


@empty.scenario()
def cost_of_an_empty_shard(impl, case):
    sizes = {"": [2, 2, 2], " with an empty shard": shuffled(case, (0, 2, 3))}
    steps = {words: _ready(impl, case, shards(case, each, (2,))) for words, each in sizes.items()}
    return _all_applied(steps, 3, usual="")


once = function.group("one collective forward and one backward", points=0.5)


@once.scenario()
def collectives_of_a_step(impl, case):
    results = _applied(impl, case, shards(case, [case.integer(2, 4)] * 3, (2,)))
    other = shards(case, shuffled(case, (2, 3, 5)), maps(case), dtype="float32")
    step, names = _ready(impl, case, other, dtype="float32"), ("collectives forward", "collectives backward")
    more = _all_applied({" of uneven maps": step}, 3, *names)
    return {"mean of y": _mean_of_y(results), **_only(results, *names), **more}


@once.scenario()
def collectives_of_ranks_that_need_different_gradients(impl, case):
    # x is data on some ranks only: those that need its gradient cannot do without the sums of the others.
    step = _ready(impl, case, shards(case, [case.integer(2, 4)] * 3, (2,)))
    needs_none = [("weight",), ("x", "bias"), ("x", "weight")]
    results = on_ranks(lambda rank: step(rank, frozen=needs_none[rank])[1](), 3)
    return {"mean of y": _mean_of_y(results), **_only(results, "collectives backward")}


grouped = function.group("the ranks of the given group, and no others", points=0.25)


@grouped.scenario()
def step_of_two_groups(impl, case):
    step = _ready(impl, case, shards(case, [case.integer(2, 4)] * 4, (2,)))

    def both(rank):
        seen, usual = (step(rank, group)[1]() for group in (groups_of(2), None))
        return {"y": seen["y"], "dx": seen["dx"], "no more collectives": _cost(seen) <= _cost(usual)}

    return by_rank(on_ranks(both, 4))


optional = function.group("without weight, bias and running statistics", points=0.5)
_ABSENT = {
    "": (),
    " without anything": _PARAMETERS,
    " without weight": ("weight",),
    " without bias": ("bias",),
    " without running statistics": _BUFFERS,
}


@optional.scenario()
def step_without_some(impl, case):
    batches = {words: shards(case, [case.integer(4, 6)] * 2) for words in _ABSENT}
    steps = {words: _ready(impl, case, batches[words], without=_ABSENT[words]) for words in _ABSENT}
    return _all_applied(steps, 2, "y", "dx", "dweight", "dbias", usual="")


@optional.scenario()
def running_statistics_without_some(impl, case):
    # The same as with everything, right or wrong: whether they are right is another group's business.
    step = _ready(impl, case, shards(case, [case.integer(4, 6)] * 2))
    absent = {"weight and bias": ("weight", "bias"), **{name: (name,) for name in _BUFFERS}}

    def each(rank):
        want, seen = step(rank)[0], {}
        for words, without in absent.items():
            have = step(rank, without=without)[0]
            left = (name for name in _BUFFERS if name not in without)
            seen |= {f"{name} without {words}, as with": torch.allclose(have[name], want[name]) for name in left}
        return seen

    return by_rank(on_ranks(each, 2))


contract = function.group("y in dtype and layout of x; x, dy, weight and bias left as they are", points=0.25)


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def _is_channels_last(y):
    return y.is_contiguous(memory_format=torch.channels_last)


@contract.scenario(dtypes=("float32",))
def dtypes_and_what_was_given(impl, case):
    # float64 as well: there a conversion makes no copy, and what works in place reaches what was given.
    seen, changed = {}, []
    for dtype, layout in {"float32": None, "float64": _channels_last}.items():
        batch = shards(case, [case.integer(4, 6)] * 2, (2, 3), dtype=dtype, layout=layout)
        results = _applied(impl, case, batch, dtype=dtype)
        seen[f"mean of y of {dtype}"] = _mean_of_y(results).to(case.as_torch(dtype))
        seen |= {f"dtype of y of {dtype} on rank {r}": str(each["y"].dtype) for r, each in enumerate(results)}
        if layout is not None:
            seen |= {f"y is channels_last on rank {r}": _is_channels_last(each["y"]) for r, each in enumerate(results)}
        changed += [name for each in results for name in each["changed"]]
    return {**seen, "inputs changed": ", ".join(filter(None, [case.changed(), *dict.fromkeys(changed)]))}


# Half has no number between two whole ones from 1024 on, and there the means lie, on every shard alike: rounded, they
# move the mean of y. In exact arithmetic they are not rounded.
@contract.scenario(dtypes=("float16",), rounding=True, within=0.03)
def output_in_float16(impl, case):
    low = np.floor(case.uniform(1100, 1900, case.integer(3, 4)))
    values = [[low, low + 1], [low - 1, low + 2]]
    batch = [case.given_tensor(np.stack(pair), f"x of rank {rank}") for rank, pair in enumerate(values)]
    step = _ready(impl, case, batch, without=_BUFFERS)
    results = on_ranks(lambda rank: step(rank)[0], 2)
    dtypes = {f"dtype of y on rank {r}": str(seen["y"].dtype) for r, seen in enumerate(results)}
    wide = [{"y": seen["y"].double()} for seen in results]
    return {"mean of y": _mean_of_y(wide).to(case.torch_dtype), **dtypes}
