"""Problem set 4, exercise 1: what is asked of `freeze_batchnorm`."""

import copy

import torch
from torch import nn

from course_lib import running_stats
from course_lib.checks.finetuning_inputs import (
    EachKind,
    gradients,
    in_eval,
    maps,
    net,
    net_of_kinds,
    seq,
    statistics,
    trainable,
)
from course_lib.checks.piece import Piece

freeze = Piece("finetuning.freeze_batchnorm", call="freeze_batchnorm(model, affine=True) → model")


still = freeze.group("statistics stay and normalise, whatever train() says later", points=0.75)


@still.scenario()
def frozen_at_once(impl, case):
    model = net(case)
    impl(model)
    return {"output": model(maps(case)).detach(), **statistics(model)}


@still.scenario()
def frozen_while_training(impl, case):
    model = net(case)
    # One layer has counted, and one averages all batches: it has no momentum.
    model.stem.bn.num_batches_tracked += case.integer(3, 9)
    model.bn.momentum = None
    impl(model)
    model.train()
    for _ in range(2):
        y = model(maps(case))
    return {
        "output in training": y.detach(),
        "batches counted": ", ".join(str(int(b)) for n, b in model.named_buffers() if n.endswith("tracked")),
        **statistics(model, " after two steps"),
    }


@still.scenario()
def frozen_from_eval(impl, case):
    # Frozen while evaluating, and the mode changes three times.
    seen = {}
    for kind, make, tail in (("1d", nn.BatchNorm1d, (3,)), ("3d", nn.BatchNorm3d, (2, 1, 2))):
        model = seq(bn=make(3), act=nn.ReLU(), block=seq(bn=make(3)))
        case.fill(model).eval()
        impl(model)
        seen[f"{kind}: layers in eval mode at once"] = in_eval(model)
        model.train().eval()
        model.train()
        seen[f"{kind}: output in training"] = model(case.tensor((4, 3, *tail), mean=1.0, std=2.0)).detach()
        seen |= {f"{kind}: {name}": value for name, value in statistics(model, " after a step").items()}
    return seen


only = freeze.group("every kind of BatchNorm, and nothing else", points=0.5)


@only.scenario()
def frozen_kinds(impl, case):
    # affine=False: of a lazy layer, gamma and beta cannot be touched yet in every way that is right otherwise.
    model = net_of_kinds(case)
    impl(model, affine=False)
    # The first step turns the lazy layer into another class.
    model.train()(maps(case, name="first x"))
    model.train()
    y = model(maps(case))
    return {"layers in eval mode after train()": in_eval(model), "output": y.detach(), **statistics(model)}


@only.scenario()
def frozen_each_kind(impl, case):
    # By its place, as well as by its name.
    model, alone = EachKind(lazy=True), case.fill(nn.BatchNorm1d(3))
    impl(model, False)
    impl(alone)
    model.train()(torch.ones(2, 2, 1, 2, 2))
    alone.train()
    y = alone(case.tensor((5, 3), mean=1.0, std=2.0))
    return {"layers in eval mode after train()": in_eval(model), "output of a model that is one": y.detach()}


@only.scenario()
def frozen_parameters_of_kinds(impl, case):
    model = net_of_kinds(case)
    model.eval()(maps(case))
    impl(model)
    model.train()
    seen = {"trained parameters": trainable(model), **gradients(model, maps(case, name="next x"))}
    beside, alone = EachKind(), nn.BatchNorm1d(3)
    for each in (beside, alone):
        impl(each)
    return {**seen, "of each kind": trainable(beside), "of a model that is one": trainable(alone)}


@only.scenario()
def frozen_nothing_else(impl, case):
    model = net(case)
    model.fc.bias.requires_grad = False
    model.body.drop.eval()
    impl(model)
    at_once = in_eval(model)
    model.train()
    others = {name for name, m in model.named_modules() if not running_stats.is_batchnorm(m)}
    trained = [n for n, p in model.named_parameters() if p.requires_grad and n.rpartition(".")[0] in others]
    y = model(maps(case))
    return {
        "layers in eval mode at once": at_once,
        "layers in eval mode after train()": in_eval(model),
        "trained parameters of other layers": ", ".join(trained),
        "mean output": y.detach().mean(),
    }


affine = freeze.group("gamma and beta stop with affine=True, and stay as they are with affine=False", points=0.5)


@affine.scenario()
def frozen_affine(impl, case):
    model = net(case)
    impl(model)
    model.train()
    return {"trained parameters": trainable(model), **gradients(model, maps(case))}


@affine.scenario()
def frozen_without_affine(impl, case):
    model = net(case)
    model.stem.bn.bias.requires_grad = False
    impl(model, affine=False)
    model.train()
    seen = {"trained parameters": trainable(model), **gradients(model, maps(case))}
    impl(model)
    seen["trained parameters, once affine is True"] = trainable(model)
    impl(model, affine=False)
    return {**seen, "trained parameters, once it is False again": trainable(model)}


place = freeze.group("in place, the same keys; twice is once; a copy is frozen too", points=0.25)


@place.scenario()
def frozen_in_place(impl, case):
    model = net(case)
    before = list(model.parameters())
    same = impl(model) is model
    # The very parameters: an optimizer may hold them.
    kept = all(now is then for now, then in zip(model.parameters(), before, strict=True))
    impl(model)
    y = model.train()(maps(case))
    return {
        "returns the model it was given": same,
        "has the parameters it had": kept,
        "state-dict keys": ", ".join(key for key in model.state_dict() if "conv" not in key and "fc" not in key),
        "output after freezing twice": y.detach(),
    }


@place.scenario()
def frozen_copy(impl, case):
    model = net(case)
    impl(model)
    model.train()(maps(case, name="first x"))
    twin = copy.deepcopy(model)
    twin.train()
    y = twin(maps(case))
    twin.eval()
    # train() and eval() return the module they are called on, which may be a layer.
    same = {id(twin.stem.bn): "that layer", id(model.stem.bn): "the original's"}
    returned = twin.stem.bn.eval()
    return {
        "eval() of a layer of the copy returns": same.get(id(returned), type(returned).__name__),
        "output of the copy": y.detach(),
        "modules of the copy in train mode after eval()": ", ".join(n for n, m in twin.named_modules() if m.training),
        "layers of the original in eval mode": in_eval(model),
        **statistics(twin, " of the copy"),
    }
