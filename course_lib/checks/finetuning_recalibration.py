"""Problem set 4, exercise 3: what is asked of `recalibrate`."""

import numpy as np
import torch
from torch import nn

from course_lib.checks.finetuning_inputs import (
    course_layer,
    drifting,
    in_eval,
    maps,
    mixed,
    net,
    net_of_kinds,
    seq,
    statistics,
    trainable,
)
from course_lib.checks.piece import Piece, raised

recalibrate = Piece("finetuning.recalibrate", call="recalibrate(model, batches) → model")


class _Loader:
    """Batches that can be read again and again, and are no list."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(list(self.batches))


class _SteadyBatchNorm1d(nn.BatchNorm1d):
    """Stays in eval mode, as a frozen layer does."""

    def train(self, mode=True):
        return super().train(False)


class _Crossed(nn.Module):
    """Defines its layers in another order than it calls them in."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(3)
        self.middle = seq(bn=nn.SyncBatchNorm(3), act=nn.ReLU())
        self.linear = nn.Linear(3, 3)
        self.first = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(self.linear(self.middle(torch.relu(self.first(x)))))


class _Twice(nn.Module):
    """Calls its second BatchNorm twice, with another one in between, and its last not at all."""

    def __init__(self):
        super().__init__()
        self.first, self.bn, self.between, self.last = (nn.BatchNorm1d(3) for _ in range(4))
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.bn(self.between(self.linear(self.bn(self.first(x)))))


class _Unreached(nn.Module):
    """Has a head that its forward does not call, and a layer of two names that it calls once."""

    def __init__(self):
        super().__init__()
        self.head = seq(linear=nn.Linear(3, 2), bn=nn.BatchNorm1d(2))
        self.bn = self.alias = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(x)


def _recalibrated(impl, model, batches):
    """The statistics afterwards, of the model that was given: it is changed in place."""
    impl(model, batches)
    return statistics(model)


exact = recalibrate.group("exact population statistics of one layer, whatever the batches", points=1)


@exact.scenario()
def recalibrated_table(impl, case):
    # Uneven batches, the last of a single row: no variance of its own.
    x = drifting(case, case.integer(9, 11))
    return _recalibrated(impl, case.fill(seq(bn=nn.BatchNorm1d(3))), x.split([4, 3, len(x) - 8, 1]))


@exact.scenario()
def recalibrated_maps(impl, case):
    # Of every rank; the layer is the model.
    seen = {}
    for kind, make, tail in (
        ("1d", nn.BatchNorm1d, (4,)),
        ("2d", nn.BatchNorm2d, (2, 3)),
        ("3d", nn.BatchNorm3d, (2, 1, 2)),
    ):
        x = drifting(case, 6, tail, name=f"x of {kind}")
        found = _recalibrated(impl, case.fill(make(3)), list(x.split([3, 1, 2])))
        seen |= {f"{kind}: {name}": value for name, value in found.items()}
    return seen


@exact.scenario()
def recalibrated_whole(impl, case):
    # One batch with few values: the unbiased variance shows.
    return _recalibrated(impl, case.fill(seq(bn=course_layer(3))), [drifting(case, 4)])


deep = recalibrate.group("layer by layer: earlier layers already use their new statistics", points=1)


@deep.scenario()
def recalibrated_net(impl, case):
    return _recalibrated(impl, net(case), list(maps(case, n=7).split([4, 3])))


@deep.scenario()
def recalibrated_net_again(impl, case):
    # The same answer from other batches, and for layers that are not trained, in eval mode, or both. One stays there.
    model = net(case)
    model.bn = case.fill(_SteadyBatchNorm1d(4))
    model.body.bn.eval()
    model.bn.eval()
    for layer in (model.stem.bn, model.bn):
        layer.requires_grad_(False)
    return _recalibrated(impl, model, list(maps(case, n=7).split([2, 2, 2, 1])))


crossed = recalibrate.group("in the order of the calls, every kind", points=0.5)


@crossed.scenario()
def recalibrated_in_call_order(impl, case):
    return _recalibrated(impl, case.fill(_Crossed()), list(drifting(case, 8).split([5, 3])))


@crossed.scenario()
def recalibrated_kinds(impl, case):
    model = net_of_kinds(case)
    model.eval()(maps(case))  # now the lazy layer knows its channels
    return _recalibrated(impl, model.train(), list(maps(case, n=6).split([4, 2])))


far = recalibrate.group("accurate when the mean is large (float32, mean 1e4, std about 1)", points=0.25)


# As in problem set 1: an honest mean is off by some 1e-2, an honest variance by 1e-3, one pass by 0.1 or more.
@far.scenario(dtypes=("float32",), within={"bn.running_mean": 0.2, "bn.running_var": 1e-2}, rounding=True)
def recalibrated_far_from_zero(impl, case):
    # The same batch twice: nothing is between the batches, and what is averaged hardly shows.
    n = case.integer(256, 320)
    batch = case.draw((n, 3), 1e4 * case.uniform(0.9, 1.1, 3), (0.5, 0.8, 1.2))
    x = case.given_tensor(np.tile(batch, (2, 1)), "x")
    found = _recalibrated(impl, case.fill(seq(bn=nn.BatchNorm1d(3))), x.split(n))
    # Of which dtype they are is another question, and asked elsewhere.
    return {name: value.float() for name, value in found.items()}


rest = recalibrate.group("all in eval mode while it runs, and afterwards as before", points=0.75)


@rest.scenario()
def recalibrated_without_dropout(impl, case):
    # Dropping everything, where it drops; a BatchNorm of instances that would move.
    model = seq(
        drop=nn.Dropout(1.0),
        instance=nn.InstanceNorm1d(3, track_running_stats=True),
        bn=nn.BatchNorm1d(3),
    )
    return _recalibrated(impl, case.fill(model), list(drifting(case, 4, (3,)).split([3, 1])))


@rest.scenario()
def recalibrated_rest(impl, case):
    model = mixed(case)
    model.body.drop.eval()
    model.stem.bn.momentum, model.bn.momentum, model.bn.eps = 0.3, None, 0.3
    model.bn.num_batches_tracked += case.integer(3, 9)
    # The model's own flag, and not its layers': they are in training mode as they were.
    model.training = False
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    model.bn.register_forward_pre_hook(lambda layer, args: None)
    model.bn.register_forward_hook(lambda layer, args, output: None)
    batches, buffers = list(maps(case, n=7).split([4, 3])), list(model.buffers())
    returned = impl(model, batches)
    layers = (model.stem.bn, model.body.bn, model.bn)
    seen = {
        "returns the model it was given": returned is model,
        "layers in eval mode": in_eval(model),
        "trained parameters": trainable(model),
        "momentum": ", ".join(str(layer.momentum) for layer in layers),
        "batches counted": ", ".join(str(int(layer.num_batches_tracked)) for layer in layers),
        # The very tensors: a part of the model may be used elsewhere, too.
        "has the buffers it had": all(now is then for now, then in zip(model.buffers(), buffers, strict=True)),
        "gradients kept": ", ".join(name for name, p in model.named_parameters() if p.grad is not None),
        "gradients are recorded": torch.is_grad_enabled(),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "statistics with a history": ", ".join(n for n, b in model.named_buffers() if b.requires_grad) or "none",
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        "inputs changed": case.changed(),
        "batches in the list": len(batches),
    }
    y = model(maps(case, name="next x"))
    return {**seen, "next output": y.detach(), **statistics(model, " after the next step")}


@rest.scenario()
def recalibrated_kinds_as_before(impl, case):
    model = net_of_kinds(case)
    model.eval()(maps(case))  # now the lazy layer knows its channels
    model.train().group.eval()
    counting = [module for module in model.modules() if hasattr(module, "num_batches_tracked")]
    for module in counting:
        module.momentum = case.number("momentum", 0.2, 0.9)
        module.num_batches_tracked.fill_(case.integer(3, 9))
    impl(model, list(maps(case, n=6, name="batches").split([4, 2])))
    single = nn.BatchNorm1d(3, dtype=torch.float32)
    impl(single, [torch.eye(3, dtype=torch.float32)])
    return {
        "layers in eval mode": in_eval(model),
        "momentum": ", ".join(str(module.momentum) for module in counting),
        "batches counted": ", ".join(str(int(module.num_batches_tracked)) for module in counting),
        "dtypes of a float32 layer's buffers": ", ".join(str(buffer.dtype) for buffer in single.buffers()),
    }


@rest.scenario()
def recalibrated_reached(impl, case):
    with torch.no_grad():
        found = _recalibrated(impl, case.fill(_Unreached()), list(drifting(case, 5).split([3, 2])))
        recorded = torch.is_grad_enabled()
    return {**found, "gradients are recorded where they were not": recorded}


refused = recalibrate.group("data that can be read again; a layer that is called twice is refused", points=0.5)


@refused.scenario()
def recalibrated_from_loader(impl, case):
    return _recalibrated(impl, case.fill(seq(bn=nn.BatchNorm1d(3))), _Loader(drifting(case, 5).split([3, 2])))


@refused.scenario()
def recalibrated_refusals(impl, case):
    x = drifting(case, 6)
    model, bn = case.fill(_net_of_tables()), nn.BatchNorm1d(3, dtype=case.torch_dtype)
    twice = case.fill(_Twice())
    twice.between.eval()
    return {
        "error for a generator": raised(impl, model, (part for part in x.split(3))),
        "error for a layer called twice": raised(impl, twice, list(x.split(3))),
        "error for a layer in two places": raised(impl, seq(a=bn, act=nn.ReLU(), b=bn).eval(), [x]),
        "layers in eval mode after an error": f"{in_eval(model)}, {in_eval(twice)}",
        "hooks after an error": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in twice.modules()),
        "statistics after an error": torch.cat([*statistics(model).values(), *statistics(twice).values()]),
        **_recalibrated(impl, case.fill(seq(bn=nn.BatchNorm1d(3))), [x]),
    }


def _net_of_tables():
    return seq(fc=nn.Linear(3, 3), bn=nn.BatchNorm1d(3))
