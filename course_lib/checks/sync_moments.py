"""Problem set 5: what is asked of `merge_moments`, and of `sync_moments` on two, three and four ranks."""

import torch

from course_lib.checks.piece import Piece, named
from course_lib.checks.sync_inputs import (
    VOLUMES,
    each_empty,
    expect_count,
    expect_tensor,
    maps,
    shards,
    shuffled,
    uneven,
)
from course_lib.checks.sync_ranks import by_rank, on_ranks
from course_lib.ranks import count_collectives
from course_lib.sync import groups_of

__all__ = ["merge", "moments"]

# --- merge_moments ----------------------------------------------------------------------------------------------

merge = Piece("sync.merge_moments", call="merge_moments((n_a, mean_a, m2_a), (n_b, mean_b, m2_b)) → (n, mean, m2)")


def _side(case, name, channels, n, dtype=None, *, rows=()):
    """(n, mean, m2) of n values per channel; the mean of an empty side is some number, and watched for changes."""
    shape = *rows, channels
    mean = case.tensor(shape, std=3.0, name=f"mean_{name}", dtype=dtype)
    m2 = case.given_tensor(case.uniform(1, 4, shape) * max(n - 1, 0), f"m2_{name}", dtype=dtype)
    return n, mean, m2


def _nothing(case, channels):
    """A side that nobody has measured: as any mean of nothing, its mean is 0/0."""
    unknown = torch.full((channels,), torch.nan, dtype=case.torch_dtype)
    return 0, unknown, unknown.clone()


def _merged(impl, *sides):
    """The union of all sides, merged from the left."""
    union = sides[0]
    for side in sides[1:]:
        union = impl(union, side)
        named(union, "n", "mean", "m2")
    return union


def _values(union):
    union = named(union, "n", "mean", "m2")
    return {"n": expect_count(union["n"]), **{name: expect_tensor(union[name], name) for name in ("mean", "m2")}}


both = merge.group("the union of two sides, and of three", points=1.5)


@both.scenario()
def union_of_two(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _side(case, "a", c, case.integer(2, 5)), _side(case, "b", c, case.integer(6, 9))))


@both.scenario()
def union_of_three(impl, case):
    # Whatever the means are of: of two layers at once, for one.
    c, sizes = case.integer(2, 4), (1, case.integer(3, 9), 1)
    return _values(_merged(impl, *(_side(case, name, c, n, rows=(2,)) for name, n in zip("abc", sizes, strict=True))))


nothing = merge.group("either side empty, or both", points=0.5)


@nothing.scenario()
def union_with_an_empty_second_side(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _side(case, "a", c, case.integer(2, 9)), _nothing(case, c)))


@nothing.scenario()
def union_with_an_empty_first_side(impl, case):
    c = case.integer(2, 4)
    return _values(_merged(impl, _nothing(case, c), _side(case, "b", c, case.integer(2, 9))))


@nothing.scenario()
def union_after_two_empty_sides(impl, case):
    # What becomes of the mean of nothing is nobody's business, as long as the next merge does not suffer from it.
    c = case.integer(2, 4)
    sides = _side(case, "a", c, 0), _side(case, "b", c, 0), _side(case, "c", c, case.integer(2, 9))
    return {**_values(_merged(impl, *sides)), "inputs changed": case.changed()}


contract = merge.group("n an int, and the sides left as they are", points=0.5)


@contract.scenario(dtypes=("float32",))
def union_leaves_its_sides_alone(impl, case):
    # Of two sides of one size, the mean comes out right even where the sizes are not looked at.
    c, n = case.integer(2, 4), case.integer(2, 5)
    union = named(impl(_side(case, "a", c, n), _side(case, "b", c, n)), "n", "mean", "m2")
    seen = {"mean": expect_tensor(union["mean"], "mean").to(case.torch_dtype), "type of n": type(union["n"]).__name__}
    ways = {"first side empty": (0, n), "second side empty": (n, 0), "of different sizes": (n, n + 2)}
    for words, sizes in ways.items():
        # float64 as well: there a conversion makes no copy, and what works in place reaches the sides.
        for dtype in ("float32", "float64"):
            sides = [_side(case, name, c, size, dtype) for name, size in zip("ab", sizes, strict=True)]
            union = named(impl(*sides), "n", "mean", "m2")
        seen[f"type of n, {words}"] = type(union["n"]).__name__
    return {**seen, "inputs changed": case.changed()}


# --- sync_moments -----------------------------------------------------------------------------------------------

_NO_DEARER = "no more collectives than {}"
moments = Piece("sync.sync_moments", call="sync_moments(x, group=None) → (n, mean, var)")


def _of_moments(impl, *args, **group):
    result = named(impl(*args, **group), "n", "mean", "var")
    return {"n": result["n"], **{name: expect_tensor(result[name], name) for name in ("mean", "var")}}


def _all_of_it(n, mean, var):
    # In float64, whatever came: which dtype the statistics have is not asked for.
    return {"n": expect_count(n), "mean": mean.double(), "var": var.double()}


def _moments(impl, batches):
    """n, mean and var of batches {words: shards}, one after the other, on every rank."""

    def step(rank):
        seen = {}
        for words, batch in batches.items():
            result = _all_of_it(**_of_moments(impl, batch[rank]))
            seen.update((name + words, value) for name, value in result.items())
        return seen

    ranks = len(next(iter(batches.values())))
    return by_rank(on_ranks(step, ranks))


def _cost(impl, *args):
    """The number of collectives of a call."""
    with count_collectives() as calls:
        impl(*args)
    return len(calls)


even = moments.group("n, mean and biased variance over two ranks", points=1)


@even.scenario()
def moments_of_two_tables(impl, case):
    return _moments(impl, {"": shards(case, [case.integer(4, 6)] * 2)})


@even.scenario()
def moments_of_two_ranks_with_maps(impl, case):
    sizes = [case.integer(2, 3)] * 2
    batches = {" of maps": shards(case, sizes, maps(case)), " of volumes": shards(case, sizes, VOLUMES)}
    return _moments(impl, batches)


# One pass over x and x² leaves nothing of such a variance in float32, and half's squares overflow. Sums in float64 do.
# And half has no odd numbers from 2048 on, to count with.
@even.scenario(dtypes=("float32",), rounding=True, within=0.05)
def moments_around_a_large_mean(impl, case):
    batches = {
        " of float32": shards(case, [case.integer(4, 6)] * 2, mean=3e4),
        " of float16": shards(case, [1, 1], (2 * case.integer(1025, 1100) + 1,), mean=150.0, dtype="float16"),
    }
    seen = _moments(impl, batches)
    return {name: value for name, value in seen.items() if name.startswith(("n of float16", "var"))}


@even.scenario(dtypes=("float32",))
def moments_of_two_ranks_in_float32(impl, case):
    batch = shards(case, [case.integer(4, 6)] * 2)

    def step(rank):
        result = _of_moments(impl, batch[rank])
        return {name: result[name].to(case.torch_dtype) for name in ("mean", "var")}

    return by_rank(on_ranks(step, 2))


uneven_shards = moments.group("shards of different sizes", points=0.5)


@uneven_shards.scenario()
def moments_of_uneven_shards(impl, case):
    batch = shards(case, uneven(case), maps(case))
    results = on_ranks(lambda rank: _all_of_it(**_of_moments(impl, batch[rank])), 3)
    alike = all(torch.equal(seen[name], results[0][name]) for seen in results for name in ("mean", "var"))
    return {**by_rank(results), "the same bits on every rank": alike}


empty = moments.group("an empty shard, and one of a single value", points=0.75)


@empty.scenario()
def moments_with_an_empty_shard(impl, case):
    # Every batch by itself: a rank that stays away would meet the others in the next one.
    seen = {}
    for words, batch in each_empty(case).items():
        seen |= _moments(impl, {words: batch})
    return seen


@empty.scenario()
def moments_with_an_empty_and_a_single_shard(impl, case):
    sizes = shuffled(case, (0, 1, case.integer(2, 3), case.integer(4, 5)))
    return _moments(impl, {"": shards(case, sizes), ", all empty,": shards(case, [0] * 4)})


@empty.scenario()
def cost_of_an_empty_shard(impl, case):
    # Compared with that of full ones: what it should be is another group's business.
    full, some = shards(case, [2, 2, 2], (2,)), shards(case, shuffled(case, (0, 2, 3)), (2,))

    def step(rank):
        usual, cost = (_cost(impl, batch[rank]) for batch in (full, some))
        return {_NO_DEARER.format("with full shards"): cost <= usual}

    return by_rank(on_ranks(step, 3))


once = moments.group("one collective", points=0.5)


@once.scenario()
def moments_take_one_collective(impl, case):
    batch = shards(case, [case.integer(2, 4)] * 3, (2,))
    other = shards(case, shuffled(case, (2, 3, 5)), maps(case), dtype="float32")

    def step(rank):
        with count_collectives() as calls:
            mean = _of_moments(impl, batch[rank])["mean"]
        with count_collectives() as more:
            _of_moments(impl, other[rank])
        return {"mean": mean.double(), "collectives": len(calls), "collectives for uneven maps": len(more)}

    return by_rank(on_ranks(step, 3))


grouped = moments.group("the ranks of the given group, and no others", points=0.25)


@grouped.scenario()
def moments_of_two_groups(impl, case):
    batch = shards(case, [case.integer(2, 4)] * 4, (2,))

    def step(rank):
        group, seen = groups_of(2), {}
        for words, result in {
            "": _of_moments(impl, batch[rank], group),
            ", group by its name,": _of_moments(impl, batch[rank], group=group),
        }.items():
            seen[f"n{words}"], seen[f"mean{words}"] = expect_count(result["n"]), result["mean"].double()
        usual, cost = _cost(impl, batch[rank]), _cost(impl, batch[rank], group)
        return {**seen, _NO_DEARER.format("without a group"): cost <= usual}

    return by_rank(on_ranks(step, 4))


contract = moments.group("n an int, mean and var float64 without history, x left as it is", points=0.5)


def _turned(x):
    """Memory where the last two axes have changed places, as an image that was turned: no view flattens them."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


@contract.scenario(dtypes=("float32",))
def moments_leave_x_alone(impl, case):
    # float64 as well: there a conversion makes no copy, and what works in place reaches the caller's x.
    layouts = {"float32": None, "float64": _turned}
    sizes = [case.integer(2, 4)] * 2
    batches = {dtype: shards(case, sizes, (2, 3), dtype=dtype, layout=layout) for dtype, layout in layouts.items()}
    volumes = shards(case, [1, case.integer(2, 3)], VOLUMES, dtype="float64")

    def step(rank):
        result = _of_moments(impl, volumes[rank])
        seen = {"type of n of uneven volumes": type(result["n"]).__name__}
        # No leaf, so that who changes it in place is not told about leaves.
        _, *both = impl(volumes[rank].detach().requires_grad_() * 1)
        seen["gradients flow"] = any(value.requires_grad for value in both)
        for dtype, batch in batches.items():
            result = _of_moments(impl, batch[rank])
            seen[f"mean of {dtype}"] = result["mean"].to(case.as_torch(dtype))
            seen |= {f"dtype of {name}": str(result[name].dtype) for name in ("mean", "var") if dtype == "float32"}
            seen[f"type of n of {dtype}"] = type(result["n"]).__name__
        return seen

    return {**by_rank(on_ranks(step, 2)), "inputs changed": case.changed()}
