"""Problem set 4, exercise 6: what is asked of `replace_batchnorm`."""

import torch
from torch import nn

from course_lib.checks.finetuning_inputs import (
    EachKind,
    drifting,
    in_eval,
    maps,
    mixed,
    net,
    net_of_kinds,
    seq,
    trainable,
)
from course_lib.checks.piece import Piece

replace = Piece("finetuning.replace_batchnorm", call="replace_batchnorm(model, make) → model")


class _Stand(nn.Module):
    """What a BatchNorm is replaced by: remembers which layer it was made of, and shows it in its output."""

    def __init__(self, bn):
        super().__init__()
        self.weight = nn.Parameter(bn.running_var.detach().clone())

    def forward(self, x):
        return x * self.weight.view(-1, *(1,) * (x.dim() - 2))


class _Around(nn.Module):
    """A replacement that keeps the layer inside."""

    def __init__(self, bn):
        super().__init__()
        self.inner = bn

    def forward(self, x):
        return 2 * self.inner(x)


def _outline(model):
    """Names and kinds of everything below a model."""
    return ", ".join(f"{name} {type(m).__name__}" for name, m in model.named_modules() if name)[:480]


everywhere = replace.group("every BatchNorm, wherever it stands, by what make gives for it", points=0.75)


@everywhere.scenario()
def replaced_net(impl, case):
    model = impl(net(case), _Stand)
    return {"layers": _outline(model), "y": model.eval()(maps(case)).detach()}


@everywhere.scenario()
def replaced_kinds(impl, case):
    model = net_of_kinds(case)
    model(maps(case))  # a lazy layer that does not know its channels cannot be copied
    each = EachKind()
    each.drop = None  # a child that has been taken out
    replaced = impl(seq(block=nn.ModuleDict({"a": nn.ModuleList([model])})), lambda bn: nn.Identity())
    return {
        "layers": _outline(replaced),
        "layers of each kind": _outline(impl(each, lambda bn: nn.Identity())),
        "y": replaced.block["a"][0].eval()(maps(case)).detach(),
    }


@everywhere.scenario()
def replaced_by_something_around(impl, case):
    given = []

    def around(bn):
        trained = "".join(name[0] for name, p in bn.named_parameters() if p.requires_grad)
        given.append(f"{bn.num_features} {bn.eps} {bn.momentum} {bn.training} {trained}")
        return _Around(bn)

    model = mixed(case)
    model.stem.bn.eps, model.bn.momentum = 0.3, None
    model = impl(model, around)
    # Of the old layers that are kept inside: whether the new ones take their mode is not asked.
    kept = [name for name, module in model.named_modules() if name.endswith("inner") and not module.training]
    return {
        "layers": _outline(model.stem),
        "layers in eval mode inside": ", ".join(kept),
        "layers that make is given: channels, eps, momentum, training, trained": ", ".join(sorted(given)),
        "y": model.eval()(maps(case)).detach(),
    }


@everywhere.scenario()
def replaced_root(impl, case):
    model = impl(case.fill(nn.BatchNorm1d(3)), _Stand)
    return {"kind": type(model).__name__, "y": model(drifting(case, 4)).detach()}


shared = replace.group("what is shared in the input is shared in the output", points=0.5)


@shared.scenario()
def replaced_shared(impl, case):
    bn = nn.BatchNorm1d(3)
    linear = nn.Linear(3, 3)
    block = seq(linear=nn.Linear(3, 3), bn=nn.BatchNorm1d(3))
    model = seq(a=bn, one=linear, b=bn, inner=seq(again=bn, two=linear), left=block, right=block, tied=nn.Linear(3, 3))
    model.tied.weight = linear.weight
    model.norm = nn.LayerNorm(3)
    model.norm.weight = bn.weight
    x = drifting(case, 4)
    new, around = impl(case.fill(model), _Stand), impl(model, _Around)
    inside = getattr(around.a, "inner", None)
    return {
        "one layer for a BatchNorm used twice in a row": new.a is new.b,
        "one layer for a BatchNorm used in two blocks": new.a is new.inner.again,
        "one linear layer": new.one is new.inner.two,
        "one block": new.left is new.right,
        "one tied weight": new.tied.weight is new.one.weight,
        "one weight, tied to a layer that is kept inside": around.norm.weight is getattr(inside, "weight", None),
        "kinds": ", ".join(type(m).__name__ for m in (new.a, new.b, new.inner.again, new.right.bn)),
        "y": new.eval()(x).detach(),
        "y of layers with the old ones inside": around.eval()(x).detach(),
    }


untouched = replace.group("a new model: the input keeps its layers, and shares nothing with the result", points=0.75)


@untouched.scenario()
def replaced_input(impl, case):
    model = mixed(case)
    model.body.drop.eval()
    x = maps(case)
    new = impl(model, _Stand)
    kept = {name for name, m in new.named_modules() if not isinstance(m, _Stand)}
    trained = [name for name, p in new.named_parameters() if p.requires_grad and name.rpartition(".")[0] in kept]
    seen = {
        "layers of the input": _outline(model),
        "modules of the input in eval mode": in_eval(model),
        "trained parameters of the input": trainable(model),
        "result is the input": new is model,
        "kept modules in eval mode": ", ".join(n for n, m in new.named_modules() if n in kept and not m.training),
        "trained parameters of kept modules": ", ".join(trained),
    }
    with torch.no_grad():
        for tensor in (*new.parameters(), *new.buffers()):
            tensor.zero_()
    return {**seen, "output of the input afterwards": model.eval()(x).detach()}


@untouched.scenario()
def replaced_input_kept_inside(impl, case):
    model, alone = net(case), case.fill(nn.BatchNorm1d(3))
    for each in (model, alone):
        new = impl(each, _Around)
        with torch.no_grad():
            for tensor in (*new.parameters(), *new.buffers()):
                tensor.zero_()
    return {
        "layers of the input": _outline(model),
        "output of the input afterwards": model.eval()(maps(case)).detach(),
        "output of a BatchNorm afterwards": alone.eval()(drifting(case, 4, name="table")).detach(),
    }
