"""Synchronised BatchNorm against the whole batch in one process, in float64."""

import copy
import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_leaves

from course_lib.ranks import RankError, count_collectives, run_ranks
from course_lib.running_stats import BatchNorm as TeachingBatchNorm
from course_lib.sync import (
    SyncBatchNorm,
    SyncBatchNormFunction,
    convert_sync_batchnorm,
    group_size,
    groups_of,
    local_moments,
    merge_moments,
    scale_and_shift,
    standardise,
    sync_moments,
)
from tests.devices import DEVICES, HOWS, forked
from tests.spawned import train, trained_on_a_shard

SHAPES = [(9, 3), (9, 3, 5), (9, 3, 4, 2), (9, 3, 2, 3, 2)]
#: How nine samples fall on three ranks: even, uneven, with an empty shard, with one sample alone, all on one.
SPLITS = [(3, 3, 3), (2, 6, 1), (5, 0, 4), (0, 0, 9)]
every_device = pytest.mark.parametrize("device", DEVICES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{len(shape)}-D")
every_split = pytest.mark.parametrize("split", SPLITS, ids=str)


def drawn(shape, seed=0, dtype=torch.float64, mean=1.0, std=2.0):
    """x, weight, bias and dy."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    c = shape[1]
    return [v.to(dtype) for v in (mean + std * draw(shape), 1 + draw(c) / 4, draw(c), draw(shape))]


def axes_of(x):
    return (0, *range(2, x.dim()))


def close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=atol)


def applied(x, weight=None, bias=None, mean=None, var=None, momentum=0.1, eps=1e-5, group=None):
    return SyncBatchNormFunction.apply(x, weight, bias, mean, var, momentum, eps, group)


def on_shards(x, split, fn, **options):
    """What fn(rank, shard) returns on each rank, x being cut along its first axis."""
    shards = x.split(split)
    return run_ranks(lambda rank: fn(rank, shards[rank].clone()), len(split), **options)


# --- merging --------------------------------------------------------------------------------------------------------


def moments_of(x):
    """(n, mean, M2) of an (n, C) tensor, in float64."""
    var, mean = torch.var_mean(x.double(), dim=0, correction=0)
    return len(x), mean, var * len(x)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_merged_moments_are_those_of_the_union(cut):
    x = drawn((9, 3))[0]
    n, mean, m2 = merge_moments(moments_of(x[:cut]), moments_of(x[cut:]))
    want = moments_of(x)
    assert n == 9 and isinstance(n, int)
    close(mean, want[1])
    close(m2, want[2])


@pytest.mark.parametrize("filled", [0, 1])
def test_of_an_empty_side_only_the_count_is_read(filled):
    nothing, full = (0, torch.full((3,), torch.nan), torch.full((3,), torch.nan)), moments_of(drawn((9, 3))[0])
    n, mean, m2 = merge_moments(*((nothing, full) if filled else (full, nothing)))
    assert n == 9 and torch.equal(mean, full[1]) and torch.equal(m2, full[2])


def test_nothing_merged_with_nothing_is_nothing():
    assert merge_moments((0, torch.zeros(1), torch.zeros(1)), (0, torch.zeros(1), torch.zeros(1)))[0] == 0


def test_the_order_of_merging_does_not_matter():
    a, b, c = (moments_of(shard) for shard in drawn((9, 3))[0].split([2, 3, 4]))
    one, other = merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(c, b))
    close(one[1], other[1])
    close(one[2], other[2])


def test_merging_keeps_the_digits_of_a_large_mean():
    x = drawn((64, 3), mean=1e8, std=1.0)[0]
    _, _, m2 = merge_moments(moments_of(x[:20]), moments_of(x[20:]))
    close(m2 / 64, (x - x[0]).var(dim=0, correction=0), atol=1e-6)


def test_merging_leaves_its_inputs_alone():
    a, b = moments_of(drawn((4, 3))[0]), moments_of(drawn((5, 3), seed=1)[0])
    before = copy.deepcopy((a, b))
    merge_moments(a, b)
    for now, then in zip((*a, *b), (*before[0], *before[1]), strict=True):
        assert torch.equal(torch.as_tensor(now), torch.as_tensor(then))


# --- moments --------------------------------------------------------------------------------------------------------


@every_device
@every_shape
def test_local_moments_are_those_of_the_shard(shape, device):
    x = drawn(shape)[0].to(device)
    n, mean, m2 = local_moments(x)
    assert n == x.numel() // 3
    close(mean, x.mean(axes_of(x)))
    close(m2 / n, x.var(axes_of(x), correction=0))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (4, 3, 0)])
def test_local_moments_of_nothing_are_zero(shape):
    n, mean, m2 = local_moments(torch.zeros(shape))
    assert n == 0 and torch.equal(mean, m2) and not mean.any() and mean.shape == (3,)


@every_device
@every_split
@every_shape
def test_moments_of_all_ranks_are_those_of_the_whole(shape, split, device):
    x = drawn(shape)[0].to(device)
    for n, mean, var in on_shards(x, split, lambda rank, shard: sync_moments(shard)):
        assert n == x.numel() // 3 and type(n) is int
        close(mean, x.mean(axes_of(x)))
        close(var, x.var(axes_of(x), correction=0))


def test_every_rank_gets_the_same_bits():
    first, *others = on_shards(drawn((9, 3, 5))[0], (2, 3, 4), lambda rank, shard: sync_moments(shard))
    assert all(torch.equal(mean, first[1]) and torch.equal(var, first[2]) for _, mean, var in others)


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
def test_float32_shards_keep_the_digits_of_the_variance(mean):
    x = drawn((600, 3, 5), dtype=torch.float32, mean=mean, std=1.0)[0]
    _, got, var = on_shards(x, (100, 0, 500), lambda rank, shard: sync_moments(shard))[0]
    exact = x.double()
    torch.testing.assert_close(var, exact.var((0, 2), correction=0), rtol=1e-5, atol=0)
    close(got, exact.mean((0, 2)), atol=1e-6)


def test_moments_take_one_collective():
    def counted(rank, shard):
        with count_collectives() as calls:
            sync_moments(shard)
        return len(calls)

    assert on_shards(drawn((9, 3))[0], (5, 0, 4), counted) == [1, 1, 1]


def test_moments_of_nothing_anywhere():
    for n, mean, var in on_shards(torch.zeros(0, 3), (0, 0), lambda rank, shard: sync_moments(shard)):
        assert n == 0 and not mean.any() and not var.any()


def test_a_value_that_is_not_finite_stays_in_its_channel():
    x = drawn((9, 3))[0]
    x[7, 1] = torch.inf
    for _, mean, var in on_shards(x, (4, 4, 1), lambda rank, shard: sync_moments(shard)):
        assert mean.isfinite().tolist() == var.isfinite().tolist() == [True, False, True]


# --- the function ---------------------------------------------------------------------------------------------------


def whole_and_parts(shape, split, device, weighted=True):
    """What torch gives in one process on the whole batch, and what each rank gives on its shard."""
    x, weight, bias, dy = (v.to(device) for v in drawn(shape))
    if not weighted:
        weight = bias = None

    def step(x, dy, run):
        leaves = [v.clone().requires_grad_() for v in (x, weight, bias) if v is not None]
        buffers = (
            torch.zeros(shape[1], dtype=x.dtype, device=device),
            torch.ones(shape[1], dtype=x.dtype, device=device),
        )
        y = run(leaves[0], *(leaves[1:] or (None, None)), *buffers)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy), *buffers]

    whole = step(x, dy, lambda x, w, b, mean, var: batch_norm(x, mean, var, w, b, True, 0.3, 0.01))
    dys = dy.split(split)
    parts = on_shards(
        x, split, lambda rank, shard: step(shard, dys[rank], functools.partial(applied, momentum=0.3, eps=0.01))
    )
    return whole, list(zip(*parts, strict=True))


@every_device
@every_split
@every_shape
def test_ranks_together_compute_the_whole_batch(shape, split, device):
    whole, parts = whole_and_parts(shape, split, device)
    for want, got in zip(whole[:2], parts[:2], strict=True):  # y and dx
        close(torch.cat(got), want)
    for want, got in zip(whole[2:4], parts[2:4], strict=True):  # dweight and dbias: each rank has its part
        close(sum(got), want)
    for want, got in zip(whole[4:], parts[4:], strict=True):  # running_mean and running_var
        for each in got:
            close(each, want)


def test_without_weight_and_bias():
    whole, parts = whole_and_parts((9, 3, 5), (2, 0, 7), "cpu", weighted=False)
    close(torch.cat(parts[0]), whole[0])
    close(torch.cat(parts[1]), whole[1])


@pytest.mark.parametrize("which", range(2))
def test_weight_without_bias_and_bias_without_weight(which):
    x, weight, bias, dy = drawn((9, 3, 5))
    given = [weight.requires_grad_(), None] if which == 0 else [None, bias.requires_grad_()]
    y = applied(x, *given)
    close(y, batch_norm(x, None, None, *given, True))
    got, want = (
        torch.autograd.grad(each, given[which], dy)[0] for each in (y, batch_norm(x, None, None, *given, True))
    )
    close(got, want)


def test_gradients_of_weight_and_bias_are_local():
    x, weight, bias, dy = drawn((9, 3, 5))
    dys = dy.split((2, 7))

    def gradients(rank, shard):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        return torch.autograd.grad(applied(shard, w, b), (w, b), dys[rank])

    x_hat = batch_norm(x, None, None, training=True).split((2, 7))
    for rank, (dweight, dbias) in enumerate(on_shards(x, (2, 7), gradients)):
        close(dweight, (dys[rank] * x_hat[rank]).sum((0, 2)))
        close(dbias, dys[rank].sum((0, 2)))


@pytest.mark.parametrize("how", HOWS)
def test_one_collective_forward_and_one_backward(how):
    x, weight, bias, dy = drawn((9, 3, 5))

    def counted(rank, shard):
        leaves = [v.clone().requires_grad_() for v in (shard, weight, bias)]
        with count_collectives() as forward:
            y = applied(*leaves, torch.zeros(3), torch.ones(3))
        with count_collectives() as backward:
            y.backward(dy.split((5, 0, 4))[rank])
        return forward, backward

    assert on_shards(x, (5, 0, 4), counted, how=how) == [(["all_gather"], ["all_reduce"])] * 3


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_what_is_exchanged_is_what_nccl_takes(monkeypatch, layout, dtype, device):
    # Contiguous tensors of one shape and dtype on all ranks, on their rank's own device. Threads and gloo ask for less.
    exchanged = {"all_gather": set(), "all_reduce": set()}

    def watched(name, collective, *args, **options):
        for tensor in tree_leaves(args):
            exchanged[name].add((tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous()))
        return collective(*args, **options)

    for name in exchanged:
        monkeypatch.setattr(dist, name, functools.partial(watched, name, getattr(dist, name)))
    x, weight, bias, dy = (v.to(device) for v in drawn((9, 3, 4, 6), dtype=dtype))
    if layout == "channels last":
        x, dy = (v.to(memory_format=torch.channels_last) for v in (x, dy))
    if layout == "strided":
        x, dy = x[..., ::2], dy[..., ::2]
    dys = dy.split((5, 0, 4))

    def step(rank, shard):
        leaves = [v.clone().requires_grad_() for v in (shard, weight, bias)]
        applied(*leaves).backward(dys[rank])

    on_shards(x, (5, 0, 4), step)
    for kinds in exchanged.values():
        [(_, _, place, contiguous)] = kinds
        assert place == x.device and contiguous


def test_ranks_meet_in_backward_whoever_needs_a_gradient():
    x, weight, bias, dy = drawn((9, 3, 5))

    def gradients(rank, shard):
        shard.requires_grad_(rank == 1)
        w = weight.clone().requires_grad_(rank != 1)
        y = applied(shard, w, bias)
        with count_collectives() as calls:
            y.backward(dy.split((3, 3, 3))[rank])
        return len(calls), shard.grad is not None, w.grad is not None

    assert on_shards(x, (3, 3, 3), gradients) == [(1, False, True), (1, True, False), (1, False, True)]


@pytest.mark.parametrize("split", [(0, 1, 0), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_one_value_on_all_ranks_is_refused_by_all(split, how):
    with pytest.raises(RankError) as raised:
        on_shards(torch.ones(1, 3), split, lambda rank, shard: applied(shard), how=how)
    assert set(raised.value.errors) == {0, 1, 2}
    for error in raised.value.errors.values():
        assert isinstance(error, ValueError) and "expected more than 1 value per channel on all ranks" in str(error)


def test_one_value_a_rank_is_enough():
    x = drawn((3, 2))[0]
    close(
        torch.cat(on_shards(x, (1, 1, 1), lambda rank, shard: applied(shard))), batch_norm(x, None, None, training=True)
    )


def test_a_refused_batch_touches_no_buffer():
    def refused(rank, shard):
        mean, var = torch.zeros(3), torch.ones(3)
        with pytest.raises(ValueError):
            applied(shard, None, None, mean, var)
        return mean, var

    for mean, var in on_shards(torch.ones(1, 3), (1, 0), refused):
        assert not mean.any() and (var == 1).all()


def test_a_batch_that_is_empty_everywhere():
    def empty(rank, shard):
        mean, var = torch.zeros(3), torch.ones(3)
        x, weight = shard.requires_grad_(), torch.ones(3, requires_grad=True)
        y = applied(x, weight, None, mean, var)
        y.sum().backward()
        return y.shape, x.grad.shape, weight.grad, mean, var

    for shape, grad, dweight, mean, var in on_shards(torch.zeros(0, 3, 4), (0, 0), empty):
        assert shape == grad == (0, 3, 4)
        assert not dweight.any() and not mean.any() and (var == 1).all()


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
def test_float32_keeps_its_digits_when_the_mean_is_large(mean):
    x, _, _, dy = drawn((600, 3, 5), dtype=torch.float32, mean=mean, std=1.0)
    exact = x.double().requires_grad_()
    want = batch_norm(exact, None, None, training=True)
    dys = dy.split((500, 0, 100))

    def step(rank, shard):
        y = applied(shard.requires_grad_())
        return y.detach(), *torch.autograd.grad(y, shard, dys[rank])

    y, dx = zip(*on_shards(x, (500, 0, 100), step), strict=True)
    close(torch.cat(y), want.detach().float(), atol=5e-6)
    close(torch.cat(dx), torch.autograd.grad(want, exact, dy.double())[0].float(), atol=5e-6)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.25, -3e4])
def test_a_constant_channel_gives_exactly_beta(value):
    x, bias = torch.full((7, 1, 3), value), torch.tensor([0.3])
    for y in on_shards(x, (3, 4), lambda rank, shard: applied(shard, torch.tensor([1.7]), bias)):
        assert (y == bias).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_has_float32_statistics(dtype):
    x, weight, bias, dy = (v.to(dtype) for v in drawn((9, 3, 50), mean=10.0))
    dys = dy.split((2, 7))

    def step(rank, shard):
        mean, var = torch.zeros(3), torch.ones(3)
        leaves = [shard.requires_grad_(), weight.float().requires_grad_(), bias.float().requires_grad_()]
        y = applied(*leaves, mean, var, momentum=1.0)
        return y.detach(), *torch.autograd.grad(y, leaves, dys[rank]), mean, var

    y, dx, dweight, dbias, mean, var = zip(*on_shards(x, (2, 7), step), strict=True)
    assert {v.dtype for v in (*y, *dx)} == {dtype} and {v.dtype for v in (*dweight, *dbias)} == {torch.float32}
    exact = x.double().requires_grad_()
    want = batch_norm(exact, None, None, weight.double(), bias.double(), True)
    ulp = torch.finfo(dtype).eps
    close(torch.cat(y), want.detach(), atol=4 * ulp)
    close(torch.cat(dx), torch.autograd.grad(want, exact, dy.double())[0], atol=4 * ulp)
    close(mean[0], x.double().mean((0, 2)), atol=1e-5)
    close(var[0], x.double().var((0, 2)), atol=1e-4)


@every_device
def test_autocast_keeps_the_statistics_in_float32(device):
    x, weight, bias, _ = (v.float().to(device) for v in drawn((9, 3, 50), mean=10.0))
    with torch.autocast(device, dtype=torch.bfloat16):
        y = applied(x.bfloat16(), weight, bias)
        close(
            applied(x, weight, bias),
            batch_norm(x.double(), None, None, weight.double(), bias.double(), True),
            atol=1e-5,
        )
    assert y.dtype == torch.bfloat16


@every_device
def test_channels_last_stays_channels_last(device):
    x, weight, bias, dy = (v.to(device) for v in drawn((4, 3, 5, 6)))
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = applied(last, weight, bias)
    [dx] = torch.autograd.grad(y, last, dy.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.is_contiguous(memory_format=torch.channels_last)
    close(y, batch_norm(x, None, None, weight, bias, True))


def test_finite_differences_agree():
    x, weight, bias, _ = (v.requires_grad_() for v in drawn((4, 2, 3)))
    assert torch.autograd.gradcheck(lambda *leaves: applied(*leaves, eps=0.1), (x, weight, bias))


# Where the loss is linear in y, the gradient that comes in has no graph.
@pytest.mark.parametrize("loss", [lambda y, _: y.square().sum(), lambda y, dy: (y * dy).sum()])
def test_a_second_derivative_is_refused_instead_of_wrong(loss):
    x, weight, bias, dy = drawn((4, 2))
    x.requires_grad_()
    [dx] = torch.autograd.grad(loss(applied(x, weight, bias), dy), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable_once"):
        dx.square().sum().backward()


def test_inputs_are_untouched():
    inputs = drawn((4, 3, 5))
    before = [v.clone() for v in inputs]
    x = inputs[0].requires_grad_()
    applied(x, *inputs[1:3]).backward(inputs[3])
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
def test_groups_have_statistics_of_their_own(how):
    x = drawn((8, 3))[0]
    dys = drawn((8, 3))[3].split(2)

    def step(rank, shard):
        y = applied(shard.requires_grad_(), group=groups_of(2))
        return y.detach(), *torch.autograd.grad(y, shard, dys[rank])

    y, dx = zip(*on_shards(x, (2, 2, 2, 2), step, how=how), strict=True)
    for half in (slice(0, 4), slice(4, 8)):
        mine = x[half].clone().requires_grad_()
        want = batch_norm(mine, None, None, training=True)
        close(torch.cat(y)[half], want.detach())
        close(torch.cat(dx)[half], torch.autograd.grad(want, mine, drawn((8, 3))[3][half])[0])


def test_the_size_of_a_group():
    assert run_ranks(lambda rank: (group_size(), group_size(groups_of(2))), 4) == [(4, 2)] * 4
    assert group_size() == 1


@pytest.mark.parametrize("call", [sync_moments, lambda x, group: applied(x, group=group)])
def test_a_group_without_this_rank_is_refused(call):
    def outside(rank):
        group = dist.new_group([0, 1])
        if rank < 2:
            call(torch.ones(2, 3), group)
            return None
        with pytest.raises(ValueError, match="expected a group that rank 2 is a member of") as raised:
            call(torch.ones(2, 3), group)
        return str(raised.value)

    assert "give each rank its own" in run_ranks(outside, 3)[2]


def test_groups_that_do_not_divide_are_refused_by_every_rank():
    with pytest.raises(RankError) as raised:
        run_ranks(lambda rank: groups_of(2), 3)
    assert set(raised.value.errors) == {0, 1, 2}
    assert "expected the size of a group to divide the 3 ranks, got 2" in str(raised.value)


def test_a_group_without_torch_distributed_is_refused():
    with pytest.raises(ValueError, match="call init_process_group first"):
        sync_moments(torch.ones(2, 3), group=object())
    with pytest.raises(ValueError, match="call init_process_group first"):
        groups_of(2)


# --- the layer ------------------------------------------------------------------------------------------------------


def trained(layer, steps=3, dtype=torch.float64):
    """The layer after some batches, with state that is nobody's default."""
    layer.to(dtype).train()
    for seed in range(steps):
        layer(drawn((6, 3, 4), seed, dtype=dtype)[0])
    return layer


def alike(one, other, atol=1e-12):
    assert list(one.state_dict()) == list(other.state_dict())
    for got, want in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        close(got, want, atol)


FLAGS = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"eps": 0.5, "momentum": 1.0},
]
every_flag = pytest.mark.parametrize("flags", FLAGS, ids=str)


@every_device
@every_flag
def test_alone_it_is_torchs_layer(flags, device):
    ours, theirs = SyncBatchNorm(3, **flags, device=device), nn.BatchNorm1d(3, **flags, device=device)
    x = drawn((6, 3, 4), seed=9)[0].to(device)
    for layer in (ours, theirs):
        layer.double().train()
        for seed in range(3):
            layer(drawn((6, 3, 4), seed)[0].to(device))
    alike(ours, theirs)
    close(ours(x), theirs(x))
    close(ours.eval()(x), theirs.eval()(x))


@every_flag
def test_state_dicts_go_both_ways(flags):
    ours, theirs = trained(SyncBatchNorm(3, **flags)), trained(nn.SyncBatchNorm(3, **flags))
    assert ours._version == 2
    alike(SyncBatchNorm(3, **flags).double(), nn.SyncBatchNorm(3, **flags).double())
    fresh = nn.BatchNorm1d(3, **flags).double()
    fresh.load_state_dict(ours.state_dict())
    alike(fresh, ours)
    fresh = SyncBatchNorm(3, **flags).double()
    fresh.load_state_dict(theirs.state_dict())
    alike(fresh, theirs)


def test_it_prints_as_torchs():
    assert repr(SyncBatchNorm(3, momentum=None)) == repr(nn.SyncBatchNorm(3, momentum=None))


@every_flag
def test_ranks_share_what_the_layer_learns(flags):
    x = drawn((9, 3, 4))[0]
    whole = nn.BatchNorm1d(3, **flags).double()
    y = torch.cat([whole(x), whole(x + 1)])

    def step(rank, shard):
        layer = SyncBatchNorm(3, **flags).double()
        return layer(shard), layer(shard + 1), layer

    first, second, layers = zip(*on_shards(x, (2, 0, 7), step), strict=True)
    close(torch.cat([*first, *second]), y)
    for layer in layers:
        alike(layer, whole)


def test_the_layer_keeps_to_its_group():
    def step(rank, shard):
        layer = SyncBatchNorm(3, process_group=groups_of(2), momentum=1.0).double()
        layer(shard)
        return layer.running_mean

    x = drawn((8, 3))[0]
    means = on_shards(x, (2, 2, 2, 2), step)
    for rank, mean in enumerate(means):
        close(mean, x[4 * (rank // 2) :][:4].mean(0))


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_what_is_refused_or_empty_everywhere_is_not_counted(momentum):
    def step(rank, shard):
        layer = SyncBatchNorm(3, momentum=momentum)
        with pytest.raises(ValueError):
            layer(shard[:1])  # one value, on rank 0
        layer(torch.zeros(0, 3))
        refused = layer.num_batches_tracked.item()
        layer(shard)  # rank 1 has nothing of it
        return refused, layer.num_batches_tracked.item()

    assert on_shards(torch.ones(4, 3), (4, 0), step) == [(0, 1), (0, 1)]


def test_evaluation_takes_no_collective_and_each_rank_alone():
    def step(rank, shard):
        tracked, untracked = (
            SyncBatchNorm(3).double().eval(),
            SyncBatchNorm(3, track_running_stats=False).double().eval(),
        )
        with count_collectives() as calls:
            tracked(shard)
            y = untracked(shard)
        return calls, y

    x = drawn((9, 3))[0]
    for (calls, y), shard in zip(on_shards(x, (4, 5), step), x.split((4, 5)), strict=True):
        assert calls == []
        close(y, batch_norm(shard, None, None, training=True))


def test_an_eval_gradient_is_not_changed_by_a_later_training_step():
    x, _, _, dy = drawn((6, 3, 4))
    layer = trained(SyncBatchNorm(3)).eval()
    want = dy * (layer.weight / (layer.running_var + layer.eps).sqrt()).detach().view(1, -1, 1)
    x.requires_grad_()
    y = layer(x)
    layer.train()(drawn((6, 3, 4), seed=5, mean=7.0)[0])
    close(torch.autograd.grad(y, x, dy)[0], want)


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_works_on_meta(training):
    layer = SyncBatchNorm(3, device="meta").train(training)
    x = torch.empty(4, 3, 5, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert {v.device.type for v in (y, x.grad, layer.weight.grad, layer.running_var)} == {"meta"}


def test_the_layer_made_in_inference_mode_trains_there():
    x = drawn((6, 3))[0]
    layers = SyncBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    with torch.inference_mode():
        layers = [copy.deepcopy(layer) for layer in layers]
        for layer in layers:
            assert layer.running_mean.is_inference()
            for _ in range(2):
                layer(x)
    alike(*layers)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_alone_it_compiles_in_one_graph(momentum):
    torch.compiler.reset()
    ours, theirs = SyncBatchNorm(3, momentum=momentum).double(), nn.BatchNorm1d(3, momentum=momentum).double()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x, _, _, dy = drawn((6, 3, 4), seed)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        close(*(torch.autograd.grad(f(v), v, dy)[0] for f, v in ((compiled, leaf), (theirs, other))))
    alike(ours, theirs)


def test_alone_it_takes_function_transforms():
    x = drawn((6, 3))[0]
    layers = [cls(3, track_running_stats=False).double() for cls in (SyncBatchNorm, nn.BatchNorm1d)]

    def loss(v, layer):
        return layer(v).pow(3).sum()

    for derivative in (torch.func.grad(loss), torch.func.jacrev(torch.func.grad(loss))):
        close(*(derivative(x, layer) for layer in layers))


def test_the_layer_copies():
    layer = trained(SyncBatchNorm(3))
    alike(copy.deepcopy(layer), layer)


# --- conversion -----------------------------------------------------------------------------------------------------

KINDS = [
    functools.partial(nn.BatchNorm1d, 3),
    functools.partial(nn.BatchNorm1d, 3, momentum=None, affine=False),
    functools.partial(nn.BatchNorm1d, 3, track_running_stats=False),
    functools.partial(nn.SyncBatchNorm, 3),
    functools.partial(SyncBatchNorm, 3, eps=0.1),
    functools.partial(TeachingBatchNorm, 3, momentum=0.7),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_every_kind_is_converted_with_its_state(kind, training):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(trained(kind()))).double().train(training)
    [before] = model[1]
    state, x = copy.deepcopy(model.state_dict()), drawn((6, 3))[0]
    want = copy.deepcopy(model)(x)
    assert convert_sync_batchnorm(model) is model
    [after] = model[1]
    assert type(after) is SyncBatchNorm and after.process_group is None and after.training is training
    assert all(getattr(after, name) == getattr(before, name) for name in ("eps", "momentum", "num_features"))
    assert after.weight is before.weight and after.running_mean is before.running_mean
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    close(model(x), want)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LazyBatchNorm2d])
def test_every_rank_of_torchs_layer_is_converted(kind):
    layer = kind() if kind is nn.LazyBatchNorm2d else kind(3)
    layer(torch.randn((4, 3, 2, 2, 2)[: 2 + {"1": 0, "2": 2, "3": 3}[kind.__name__[-2]]]))
    assert type(convert_sync_batchnorm(nn.Sequential(layer))[0]) is SyncBatchNorm


def test_a_root_is_returned_converted():
    layer = trained(nn.BatchNorm1d(3))
    converted = convert_sync_batchnorm(layer)
    assert type(layer) is nn.BatchNorm1d and type(converted) is SyncBatchNorm and converted.weight is layer.weight


def test_a_shared_layer_stays_shared():
    layer = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Sequential(layer, nn.BatchNorm1d(3))})
    convert_sync_batchnorm(model)
    assert model["a"] is model["b"] is model["c"][0] is not model["c"][1]
    assert not [module for module in model.modules() if type(module) is nn.BatchNorm1d]


def test_what_is_frozen_and_hooked_stays_so():
    layer = nn.BatchNorm1d(3).eval()
    layer.bias.requires_grad_(False)
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    model = convert_sync_batchnorm(nn.Sequential(layer).train())
    model[0].eval()
    assert (model[0].weight.requires_grad, model[0].bias.requires_grad) == (True, False)
    model(torch.ones(2, 3))
    handle.remove()
    model(torch.ones(2, 3))
    assert calls == [1]


def test_an_optimiser_goes_on_with_the_same_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = list(map(id, model.parameters()))
    assert list(map(id, convert_sync_batchnorm(model).parameters())) == before


def test_other_norms_are_left_alone():
    model = nn.Sequential(nn.InstanceNorm1d(3), nn.LayerNorm(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    kinds = [nn.InstanceNorm1d, nn.LayerNorm, SyncBatchNorm, nn.GroupNorm]
    assert [type(module) for module in convert_sync_batchnorm(model)] == kinds


def test_the_group_is_given_to_every_layer():
    def converted(rank):
        group = groups_of(2)
        model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3)), group)
        return all(layer.process_group is group for layer in model)

    assert run_ranks(converted, 4) == [True] * 4


# --- training -------------------------------------------------------------------------------------------------------


def small_model():
    """Two BatchNorm layers; every parameter drawn."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    ).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4 + 0.5)
    return model


def batches():
    generator = torch.Generator().manual_seed(4)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    return [(draw(8, 1, 6, 6) + step / 5, draw(8, 5)) for step in range(20)]


#: (how ranks run, backend, device, ranks). NCCL takes one rank a GPU; threads share one.
TOGETHER = [
    *(("threads", "gloo", device, 2) for device in DEVICES),
    pytest.param("fork", "gloo", "cpu", 2, marks=forked),
]
if torch.cuda.is_available():
    TOGETHER += [("spawn", "nccl", "cuda", torch.cuda.device_count())]


@pytest.mark.parametrize(("how", "backend", "device", "ranks"), TOGETHER)
def test_data_parallel_training_is_training_in_one_process(how, backend, device, ranks):
    want = train(small_model(), batches()).state_dict()
    assert (want["5.running_mean"] != 0).all() and not torch.equal(want["0.weight"], small_model()[0].weight)
    told = (device, small_model(), batches())
    for state in run_ranks(trained_on_a_shard, ranks, *told, how=how, backend=backend, timeout=120):
        assert list(state) == list(want)
        for name, value in want.items():
            close(state[name], value, atol=1e-11)


@pytest.fixture
def script(tmp_path):
    """The training script of chapter 5, as the page shows it."""
    page = (Path(__file__).parents[1] / "chapters" / "05-sync.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M))
    path = tmp_path / "train.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_the_script_of_the_chapter_gives_the_same_on_one_process_and_two(script, monkeypatch, capsys):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*torchrun, script], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr

    # What torchrun would tell a single process, without starting one.
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(script))

    two, one = (float(printed.split("test loss ")[1]) for printed in (run.stdout, capsys.readouterr().out))
    assert two == pytest.approx(one, abs=2e-6)  # it prints six digits
    assert one < 2.3  # guessing: ln 10


# --- errors ---------------------------------------------------------------------------------------------------------

ok, ones = torch.arange(12.0).reshape(4, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge_moments((-1, ones, ones), (1, ones, ones)), "expected counts of at least 0, got -1 and 1"),
        (lambda: merge_moments((1, ones, ones), (1, ones[:2], ones)), "expected mean and m2 of one shape"),
        (lambda: sync_moments([1.0]), "expected x to be a tensor (N, C, ...), got list"),
        (lambda: sync_moments(ones), "got (3,)"),
        (lambda: sync_moments(ok.long()), "expected x of a floating-point dtype, got torch.int64"),
        (lambda: local_moments(torch.ones(2, 2, 2, 2, 2, 2)), "got (2, 2, 2, 2, 2, 2)"),
        (lambda: applied(ok.long()), "expected x of a floating-point dtype, got torch.int64"),
        (lambda: applied(ok, ones[:2]), "expected weight of shape (3,), one value per channel"),
        (lambda: applied(ok, ones, ones[:2]), "expected bias of shape (3,), one value per channel"),
        (lambda: applied(ok, mean=ones[:1]), "expected running_mean of shape (3,), one value per channel"),
        (lambda: applied(ok, var=ones.to("meta")), "expected running_var on x's device, cpu, got meta"),
        (lambda: applied(ok, momentum=None), "expected momentum to be a number from 0 to 1, got None"),
        (lambda: applied(ok, momentum=1.5), "expected momentum to be a number from 0 to 1, got 1.5"),
        (lambda: applied(ok, eps=-1.0), "expected eps to be a number of at least 0, got -1.0"),
        (lambda: applied(ok[:1]), "expected more than 1 value per channel on all ranks together when training, got 1"),
        (lambda: SyncBatchNorm(0), "expected num_features to be a whole number of at least 1, got 0"),
        (lambda: SyncBatchNorm(3, eps=-1.0), "expected eps to be a number of at least 0, got -1.0"),
        (lambda: SyncBatchNorm(3, momentum="0.1"), "expected momentum to be a number from 0 to 1, got '0.1'"),
        (lambda: SyncBatchNorm(2)(ok), "expected x of shape (N, C, ...) with C=2, got (4, 3)"),
        (
            lambda: convert_sync_batchnorm(nn.Linear(2, 2)),
            "expected a model with a BatchNorm layer, got Linear without",
        ),
        (lambda: convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d())), "layer '0' to know its channels"),
    ],
)
def test_errors_quote_expected_and_got(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_a_frozen_layer_is_not_converted_silently():
    layer = nn.BatchNorm1d(3)
    layer.train = lambda mode=True: layer  # as `course_lib.finetuning` keeps it
    with pytest.raises(ValueError, match="got a frozen one: convert, then freeze"):
        convert_sync_batchnorm(nn.Sequential(layer))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_what_a_conversion_would_lose_is_not_converted_silently():
    class BatchNormReLU(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    layer = nn.BatchNorm1d(3)
    register_parametrization(layer, "weight", Doubled())
    for lossy, message in (
        (BatchNormReLU(3), "BatchNormReLU.* with a forward of its own"),
        (layer, "parametrizations"),
    ):
        model = nn.Sequential(nn.BatchNorm1d(3), lossy)
        with pytest.raises(ValueError, match=message):
            convert_sync_batchnorm(model)
        assert type(model[0]) is nn.BatchNorm1d


def test_helpers_agree_with_the_formula():
    x, weight, bias, _ = drawn((4, 3, 2))
    mean, invstd = x.mean((0, 2)), 1 / x.std((0, 2))
    x_hat = (x - mean.view(1, -1, 1)) * invstd.view(1, -1, 1)
    close(standardise(x, mean, invstd), x_hat)
    close(scale_and_shift(x_hat, weight, bias), x_hat * weight.view(1, -1, 1) + bias.view(1, -1, 1))
