"""Problem set 4, exercise 2: what is asked of `freeze_batchnorm` and `unfreeze_batchnorm` as a pair."""

import copy

from torch import nn

from course_lib.checks.finetuning_inputs import (
    EachKind,
    gradients,
    in_eval,
    maps,
    mixed,
    net,
    net_of_kinds,
    statistics,
    trainable,
)
from course_lib.checks.piece import Piece, WrongReturn

unfreeze = Piece(
    "finetuning.unfreeze_batchnorm",
    call="unfreeze_batchnorm(model) → model",
    takes=("freeze_batchnorm", "unfreeze_batchnorm"),
)


def _pair(impl):
    if not (isinstance(impl, tuple | list) and len(impl) == 2):
        raise WrongReturn("expected both of your functions: check(…, (freeze_batchnorm, unfreeze_batchnorm))")
    return impl


modes = unfreeze.group("every layer's own mode comes back", points=0.5)


@modes.scenario()
def unfrozen_modes(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    freezing(model)
    model.train()
    model.body.drop.eval()
    thawing(model)
    seen = {"layers in eval mode": in_eval(model)}
    model(maps(case))
    return {**seen, **statistics(model, " after a step")}


@modes.scenario()
def unfrozen_each_kind(impl, case):
    freezing, thawing = _pair(impl)
    model, alone = EachKind(), nn.BatchNorm1d(3)
    for each in (model, alone):
        freezing(each, affine=False)
        each.eval()
        thawing(each)
    return {"layers in eval mode": in_eval(model), "mode of a model that is a BatchNorm": in_eval(alone)}


@modes.scenario()
def unfrozen_after_eval(impl, case):
    # The model has been evaluated in between: what counts is the mode before the freeze.
    freezing, thawing = _pair(impl)
    model = net_of_kinds(case)
    model.lazy.eval()
    freezing(model, affine=False)
    model.eval()(maps(case, name="first x"))
    thawing(model)
    seen = {"layers in eval mode": in_eval(model)}
    model(maps(case))
    return {**seen, **statistics(model, " after a step")}


@modes.scenario()
def unfrozen_follows_train(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    model.body.bn.momentum, model.bn.momentum = None, case.number("momentum", 0.3, 0.6)
    freezing(model)
    thawing(model)
    seen = {"layers in eval mode after train()": in_eval(model.train())}
    seen["layers in train mode after eval()"] = ", ".join(n for n, m in model.eval().named_modules() if m.training)
    model.train()(maps(case))
    return {**seen, **statistics(model, " after a step")}


wanted = unfreeze.group("every parameter's own requires_grad comes back", points=0.5)


@wanted.scenario()
def unfrozen_gradients(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    freezing(model)
    thawing(model)
    return {"trained parameters": trainable(model), **gradients(model.eval(), maps(case))}


@wanted.scenario()
def unfrozen_parameters_of_each_kind(impl, case):
    freezing, thawing = _pair(impl)
    model, alone = EachKind(), nn.BatchNorm1d(3)
    for each in (model, alone):
        freezing(each)
        thawing(each)
    return {"trained parameters": trainable(model), "of a model that is a BatchNorm": trainable(alone)}


@wanted.scenario()
def unfrozen_without_affine(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    freezing(model, affine=False)
    thawing(model)
    return {"trained parameters": trainable(model), **gradients(model.eval(), maps(case))}


again = unfreeze.group("twice is once; the same model; a copy has its own state", points=0.5)


@again.scenario()
def unfrozen_twice(impl, case):
    freezing, thawing = _pair(impl)
    model, beside = mixed(case), net(case)
    freezing(model)
    freezing(model)
    freezing(beside)  # its layers have the same names
    same = thawing(model) is model
    # Evaluated after it was unfrozen: nothing is left to restore.
    model.eval()
    for each in (model, beside):
        thawing(each)
    seen = {"returns the model it was given": same, "layers in eval mode": in_eval(model)}
    return {**seen, "trained parameters": trainable(model), "output": model(maps(case)).detach()}


@again.scenario()
def unfrozen_after_freezing_twice(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    freezing(model)
    freezing(model)
    thawing(model)
    seen = {"layers in eval mode": in_eval(model), "trained parameters": trainable(model)}
    model(maps(case))
    return {**seen, **statistics(model, " after a step")}


@again.scenario()
def unfrozen_in_turns(impl, case):
    # Nothing to undo at first; then another state before the second freeze than before the first.
    freezing, thawing = _pair(impl)
    model = mixed(case)
    same = thawing(model) is model
    freezing(model)
    thawing(model)
    model.stem.bn.train()
    model.bn.eval().weight.requires_grad = False
    freezing(model)
    model.train()
    thawing(model)
    seen = {"layers in eval mode": in_eval(model), "trained parameters": trainable(model)}
    model(maps(case))
    return {**seen, **statistics(model, " after a step"), "returns the model with nothing to undo": same}


@again.scenario()
def unfrozen_from_both_ways(impl, case):
    # Frozen without weight and bias, then with them.
    freezing, thawing = _pair(impl)
    seen = {}
    for first, words in ((False, ""), (True, ", the other way round")):
        model = mixed(case)
        freezing(model, affine=first)
        freezing(model, affine=not first)
        thawing(model)
        seen |= {"layers in eval mode" + words: in_eval(model), "trained parameters" + words: trainable(model)}
    return seen


@again.scenario()
def unfrozen_copy(impl, case):
    freezing, thawing = _pair(impl)
    model = mixed(case)
    freezing(model)
    twin = copy.deepcopy(model)
    thawing(twin)
    model.train()(maps(case))
    seen = {"layers of the original in eval mode": in_eval(model), "of the copy": in_eval(twin.train())}
    other = copy.deepcopy(model)
    thawing(model).train()
    other.train()
    seen["of the original, unfrozen after a copy was made"] = in_eval(model)
    model(maps(case))
    return {**seen, "trained parameters of the copy": trainable(twin), **statistics(model, " after a step")}


@again.scenario()
def unfrozen_keys(impl, case):
    freezing, thawing = _pair(impl)
    model = net(case)
    model.bn.num_batches_tracked += case.integer(3, 9)
    freezing(model)
    thawing(model)
    keys = ", ".join(key for key in model.state_dict() if "conv" not in key and "fc" not in key)
    counted = int(model.bn.num_batches_tracked)
    return {"state-dict keys": keys, "batches counted": counted, "output": model.eval()(maps(case)).detach()}
