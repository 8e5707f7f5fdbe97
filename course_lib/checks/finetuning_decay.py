"""Problem set 4, exercise 7: what is asked of `weight_decay_groups`."""

import torch
from torch import nn

from course_lib.checks.finetuning_inputs import OwnBatchNorm3d, course_layer, net, seq, trainable
from course_lib.checks.piece import Piece, named

decay = Piece("finetuning.weight_decay_groups", call="weight_decay_groups(model, weight_decay) → (decay, none)")


class _Scaled(nn.Module):
    """Two parameters of its own, none of a norm's, and one of them a bias."""

    def __init__(self, channels):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.linear = nn.Linear(channels, channels)

    def forward(self, x):
        return self.linear(x * self.scale + self.bias)


def _groups(impl, case, model):
    """(names with decay, names without, the groups), each name as often as the parameter is listed."""
    names = {id(p): name for name, p in model.named_parameters()}
    result = named(impl(model, case.number("weight_decay", 0.1, 0.4)), "decay", "none")
    lists = {key: list(group["params"]) for key, group in result.items()}
    listed = {key: ", ".join(sorted(names.get(id(p), "unknown") for p in params)) for key, params in lists.items()}
    return listed, [{**group, "params": lists[key]} for key, group in result.items()]


def _decayed(model, groups):
    """Every parameter after a step of SGD with learning rate 1 and gradients of zero: decay alone moves it."""
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in groups:
        listed = {id(p) for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in listed:
                # A group that does not say its decay gets the optimizer's own.
                after[name] *= 1 - group.get("weight_decay", 0.7)
    return {f"{name} after a step": value for name, value in after.items()}


spared = decay.group("norms and biases are spared, everything else decays", points=0.75)


@spared.scenario()
def decay_of_norms(impl, case):
    model = seq(
        conv=nn.Conv2d(2, 4, 1),
        bn=nn.BatchNorm2d(4),
        sync=nn.SyncBatchNorm(4),
        course=course_layer(4),
        group=nn.GroupNorm(2, 4),
        layer=nn.LayerNorm((4, 2)),
        rms=nn.RMSNorm(2),
        instance=nn.InstanceNorm2d(4, affine=True),
        bn1=nn.BatchNorm1d(2),
        bn3=OwnBatchNorm3d(2),
        instance1=nn.InstanceNorm1d(2, affine=True),
        instance3=nn.InstanceNorm3d(2, affine=True),
        last=nn.LayerNorm(2),
        prelu=nn.PReLU(2),
    )
    # Used twice, first in a norm.
    model.prelu.weight = model.last.weight
    listed, groups = _groups(impl, case, case.fill(model))
    return {"with decay": listed["decay"], "without": listed["none"], **_decayed(model, groups)}


@spared.scenario()
def decay_of_others(impl, case):
    # Weights with one axis, biases whose names only begin or end so, parameters of no layer of torch's, and a layer
    # whose own name says bias.
    model = seq(
        lstm=nn.LSTM(2, 2),
        prelu=nn.PReLU(3),
        own=_Scaled(3),
        fc=nn.Linear(3, 2),
        debiased=nn.Linear(2, 3),
        embedding=nn.Embedding(3, 2),
        attention=nn.MultiheadAttention(2, 1),
    )
    listed, groups = _groups(impl, case, case.fill(model))
    return {"with decay": listed["decay"], "without": listed["none"], **_decayed(model, groups)}


@spared.scenario()
def decay_of_one_layer(impl, case):
    # The model is the layer. One of the two groups may be empty.
    seen = {}
    layers = {"linear": nn.Linear(3, 2), "norm": nn.LayerNorm((2, 2)), "no bias": nn.Linear(3, 2, bias=False)}
    for name, layer in layers.items():
        listed, _ = _groups(impl, case, case.fill(layer))
        seen |= {f"{name}, {key}": parameters for key, parameters in listed.items()}
    return seen


once = decay.group("each trainable parameter exactly once", points=0.5)


@once.scenario()
def decay_of_trainable(impl, case):
    model = net(case)
    frozen = (model.body.conv.weight, model.stem.bn.weight, model.fc.bias)
    for parameter in frozen:
        parameter.requires_grad = False
    listed, groups = _groups(impl, case, model)
    total = sum(p.detach().square().sum() for group in groups for p in group["params"])
    return {
        "listed": ", ".join(sorted(filter(None, listed.values()))),
        "trained afterwards": trainable(model),
        "Σ squares": total,
    }


@once.scenario()
def decay_of_shared(impl, case):
    # A tied weight, and a layer used in two places.
    block = seq(fc=nn.Linear(3, 3), bn=nn.BatchNorm1d(3), norm=nn.LayerNorm(3))
    model = seq(a=nn.Linear(3, 3), b=nn.Linear(3, 3), left=block, right=block)
    model.b.weight = model.a.weight
    listed, groups = _groups(impl, case, case.fill(model))
    total = sum(p.detach().square().sum() for group in groups for p in group["params"])
    return {"listed": ", ".join(sorted(filter(None, listed.values()))), "Σ squares": total}


form = decay.group("first the group that decays, then the other", points=0.25)


@form.scenario()
def decay_form(impl, case):
    # So many that a set hardly keeps their order.
    deep = seq(**{f"fc{i}": nn.Linear(2, 2) for i in range(8)})
    model = case.fill(seq(fc=nn.Linear(3, 2), bn=nn.BatchNorm1d(2), deep=deep))
    _, groups = _groups(impl, case, model)
    places = {id(p): place for place, p in enumerate(model.parameters())}
    orders = [[places.get(id(p), -1) for p in group["params"]] for group in groups]
    rates = {"decay of the first group": 0.0, "decay of the second group": 0.0}
    for key, group in zip(rates, groups, strict=True):
        rates[key] = float(group.get("weight_decay", -1))
    return {
        **rates,
        "first": groups[0]["params"][0].detach().clone() if groups[0]["params"] else "nothing",
        "in the model's order": all(order == sorted(order) for order in orders),
    }
