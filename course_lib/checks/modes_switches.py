"""Problem set 3, who is in which mode: what is asked of `bn_modes`, `evaluating` and `predict`."""

import copy

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from course_lib import running_stats
from course_lib.checks.modes_inputs import MIXED, Curve, in_training, mixed_model, state, trainable
from course_lib.checks.piece import Piece, WrongReturn

# --- bn_modes -------------------------------------------------------------------------------------------------------

modes = Piece("modes.bn_modes", call='bn_modes(model) → {name: "train" or "eval"}')


def _listed(impl, model):
    found = impl(model)
    if not isinstance(found, dict):
        raise WrongReturn(f"expected a dict {{name: mode}} to be returned, got {type(found).__name__}")
    return found


def _as_fact(found):
    return ", ".join(f"{name!r}: {mode!r}" for name, mode in sorted(found.items(), key=str)) or "nothing"


def _flagged(case, layers):
    """The layers, each in a mode of its own, not all in the same."""
    flags = [case.integer(0, 1) for _ in layers[1:]]
    for layer, flag in zip(layers, [1 - flags[0], *flags], strict=True):
        layer.training = bool(flag)
    return layers


each = modes.group("each layer's own mode, under its own name", points=0.5)


def _many(case, makes):
    """Two dozen layers in a row, each made by one of `makes` and in a mode of its own."""
    layers = [case.choice(makes)() for _ in range(24)]
    for layer in layers:
        layer.training = bool(case.integer(0, 1))
    return layers


def _said(found, names):
    """What is said about modules, one number each: 1 for train, 0 for eval, −1 for not listed, 9 for anything else."""
    words = {"train": 1, "eval": 0, None: -1}
    return np.array([words.get(found.get(name), 9) for name in names])


@each.scenario()
def modes_of_many_layers(impl, case):
    model = nn.Sequential(*_many(case, [lambda: nn.BatchNorm1d(2), lambda: nn.BatchNorm2d(2)]))
    found = _listed(impl, model)
    return {"of 24 layers (1: train, 0: eval)": _said(found, map(str, range(24))), "as many as": len(found)}


@each.scenario()
def modes_of_nested_layers(impl, case):
    layers = _flagged(case, [nn.BatchNorm1d(2), nn.BatchNorm1d(3), nn.BatchNorm2d(2)])
    names = case.choice([("stem", "body", "head"), ("first", "norm", "last"), ("a", "inner", "z")])
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layers[1], nn.ReLU()), layers[2])
    model = nn.Sequential()
    for name, part in zip(names, (layers[0], inner, nn.Dropout()), strict=True):
        model.add_module(name, part)
    # The model's own flag, and that of the part, are no layer's.
    seen = {}
    for which, flags in {
        "in training, inner part in eval": (True, False),
        "the other way round": (False, True),
    }.items():
        model.training, inner.training = flags
        before = in_training(model)
        seen[f"of a nested model {which}"] = _as_fact(_listed(impl, model))
        seen[f"modes as before, {which}"] = in_training(model) == before
    return seen


kinds = modes.group("every kind of Batch Normalization layer, and no other layer", points=0.75)


class _Normalise(nn.BatchNorm2d):
    """A kind of its own, by derivation."""


class _OwnChecks(nn.modules.batchnorm._BatchNorm):
    """A kind of its own, beside the three and beside Sync."""

    def _check_input_dim(self, x):
        pass


class _BatchNormLike(nn.Identity):
    """Not by its name alone."""


def _courses_layer():
    """The course's layer, as `isinstance` sees it: a student may not have written its body yet."""
    return type("Layer", (running_stats.BatchNorm,), {"__init__": lambda self: nn.Module.__init__(self)})()


@kinds.scenario()
def modes_of_every_kind(impl, case):
    right = {
        "BatchNorm1d": nn.BatchNorm1d(2),
        "BatchNorm2d": nn.BatchNorm2d(2),
        "BatchNorm3d": nn.BatchNorm3d(2),
        "SyncBatchNorm": nn.SyncBatchNorm(2),
        "LazyBatchNorm1d": nn.LazyBatchNorm1d(),
        "LazyBatchNorm2d": nn.LazyBatchNorm2d(),
        "LazyBatchNorm3d": nn.LazyBatchNorm3d(),
        "the course's BatchNorm": _courses_layer(),
        "BatchNorm1d without weight and bias": nn.BatchNorm1d(2, affine=False),
        "BatchNorm1d without running statistics": nn.BatchNorm1d(2, track_running_stats=False),
        "a class derived from BatchNorm2d": _Normalise(2),
        "a class derived from torch's _BatchNorm": _OwnChecks(2),
    }
    other = {
        "InstanceNorm2d": nn.InstanceNorm2d(2),
        "LayerNorm": nn.LayerNorm(2),
        "GroupNorm": nn.GroupNorm(1, 2),
        "Dropout": nn.Dropout(),
        "an Identity of the class BatchNormLike": _BatchNormLike(),
    }
    _flagged(case, [*right.values(), *other.values()])
    model = nn.Module()
    for i, (kind, layer) in enumerate((right | other).items()):
        # Their names in the model say nothing, or the opposite.
        model.add_module(f"part{i}" if kind in right else f"bn{i}", layer)
    found = _listed(impl, model)
    names = {id(layer): name for name, layer in model.named_children()}
    return {kind: found.get(names[id(layer)], "not listed") for kind, layer in (right | other).items()}


@kinds.scenario()
def modes_among_other_layers(impl, case):
    makes = [lambda: nn.BatchNorm3d(2), lambda: nn.SyncBatchNorm(2), nn.LazyBatchNorm2d, nn.Identity, nn.Dropout]
    found = _listed(impl, nn.Sequential(*_many(case, makes)))
    return {"of 24 modules (1: train, 0: eval, −1: not listed)": _said(found, map(str, range(24)))}


special = modes.group("a layer shared, a layer alone, and a model without", points=0.25)


@special.scenario()
def modes_of_shared_layers(impl, case):
    layers = _many(case, [lambda: nn.BatchNorm1d(2)])[:10]
    found = _listed(impl, nn.Sequential(*(case.choice(layers) for _ in range(24))))
    return {"of 24 places (1: train, 0: eval, −1: listed before)": _said(found, map(str, range(24)))}


@special.scenario()
def modes_of_special_models(impl, case):
    first, shared, alone = _flagged(case, [nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    model = nn.Sequential(shared, nn.ReLU(), shared, first)
    return {
        "of a model with a layer used twice": _as_fact(_listed(impl, model)),
        "of a layer alone": _as_fact(_listed(impl, alone)),
        "of a model without such layers": _as_fact(_listed(impl, nn.Sequential(nn.Linear(2, 2), nn.ReLU()))),
    }


# --- evaluating -----------------------------------------------------------------------------------------------------


def _caught(action):
    """Name of the exception that comes out of `action`, a keyboard interrupt too; "no error" without one."""
    try:
        action()
    except NotImplementedError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return type(error).__name__
    return "no error"


switch = Piece("modes.evaluating", call="with evaluating(model): …")

inside = switch.group("everything is in eval inside", points=0.5)


@inside.scenario()
def modes_inside(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        model = _mixed(case, outer)
        x = case.tensor((case.integer(3, 5), model[0][0].num_features))
        context = impl(model)
        seen[f"in training before the block, of {which}"] = in_training(model)
        with context:
            seen |= {
                f"in training, of {which}": in_training(model),
                f"output of the first part of {which}": model[0](x),
                f"parameters that need gradients, of {which}": trainable(model),
                f"gradients are recorded, of {which}": torch.is_grad_enabled(),
            }
    return seen


def _mixed(case, outer):
    return mixed_model(case, case.integer(2, 4), nn.Sequential(nn.Linear(2, 2), nn.Dropout()), outer=outer, frozen=True)


back = switch.group("each module's own mode afterwards", points=0.5)


def _afterwards(case, model, which):
    """What is to be as before; the output comes last, since it moves the statistics."""
    seen = {f"in training afterwards, of {which}": in_training(model)}
    seen[f"parameters that need gradients afterwards, of {which}"] = trainable(model)
    x = case.tensor((case.integer(3, 5), model[0][0].num_features))
    return seen | {f"output of the first part of {which} afterwards": model[0](x)}


@back.scenario()
def modes_afterwards(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        model = _mixed(case, outer)
        with impl(model):
            pass
        seen |= _afterwards(case, model, which)
    return seen


@back.scenario()
def modes_after_being_switched_inside(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        for training in (True, False):
            model = mixed_model(case, 2, outer=outer)
            with impl(model):
                model.train(training)
            seen[f"in training afterwards, of {which}, after train({training}) inside"] = in_training(model)
    return seen


@back.scenario()
def modes_after_one_inside_another(impl, case):
    model = mixed_model(case, case.integer(2, 4))
    with impl(model):
        with impl(model):
            pass
        seen = {"in training after the inner one": in_training(model)}
    return seen | _afterwards(case, model, "a model")


failed = switch.group("also after an exception, which comes through", points=0.5)


@failed.scenario()
def modes_after_an_exception(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        mixed = mixed_model(case, case.integer(2, 4), outer=outer, frozen=True)
        # The last is what ends a validation loop that takes too long, and no Exception.
        for error in (KeyError, RuntimeError, KeyboardInterrupt):
            model = copy.deepcopy(mixed)

            def failing(model=model, error=error):
                with impl(model):
                    raise error("inside")

            seen[f"error that comes through of {error.__name__}, {which}"] = _caught(failing)
            seen[f"in training after {error.__name__}, of {which}"] = in_training(model)
        seen |= _afterwards(case, model, which)
    return seen


# --- predict --------------------------------------------------------------------------------------------------------


def _sizes(case, n):
    """How `n` samples are cut into batches: one alone, the others in two unequal parts."""
    cut = case.integer(1, (n - 2) // 2)
    return [cut, 1, n - 1 - cut] if cut != n - 1 - cut else [cut + 1, 1, n - 2 - cut]


prediction = Piece("modes.predict", call="predict(model, batches) → tensor")


def _as_tensor(y):
    if not isinstance(y, torch.Tensor):
        raise WrongReturn(f"expected one tensor to be returned, got {type(y).__name__}")
    return y


outputs = prediction.group("outputs of all the data, however they are cut", points=0.75)


@outputs.scenario()
def predictions(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        model = mixed_model(case, 3, Curve(), outer=outer)
        x = case.tensor((case.integer(6, 9), 3), std=2.0)
        pieces = x.split(_sizes(case, len(x)))
        seen[f"y of {which}"] = _as_tensor(impl(model, list(pieces)))
        seen[f"y of {which}, in one batch"] = _as_tensor(impl(model, [x]))
    return seen


@outputs.scenario()
def predictions_from_a_generator(impl, case):
    model = mixed_model(case, 4)
    x = case.tensor((case.integer(6, 9), 4), std=2.0)
    return {"y": _as_tensor(impl(model, (batch for batch in x.split(_sizes(case, len(x))))))}


class _Shaped(nn.Module):
    """Outputs of another rank: a number for each sample, or a map."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(len(x), *self.shape, -1) if self.shape else x.sum(1)


@outputs.scenario()
def predictions_of_any_rank(impl, case):
    seen = {}
    for words, shape in (("numbers", ()), ("maps", (2, 1))):
        model = mixed_model(case, 4, _Shaped(*shape))
        x = case.tensor((case.integer(6, 9), 4), std=2.0)
        seen[f"y of a model that gives {words}"] = _as_tensor(impl(model, list(x.split(_sizes(case, len(x))))))
    return seen


no_graph = prediction.group("no graph is recorded, and nothing is fetched to the CPU", points=0.25)


class _Fetching(TorchFunctionMode):
    """Notes calls that fetch a tensor to the CPU from wherever it is: to one that is there already they do nothing."""

    def __init__(self):
        super().__init__()
        self.seen = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A device read off another tensor is no place that somebody named.
        named = func is torch.Tensor.to and any(isinstance(v, str) for v in (*args, *kwargs.values()))
        self.seen |= named or func in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__)
        return func(*args, **kwargs)


@no_graph.scenario()
def predictions_without_graph(impl, case):
    # Nothing that has a mode: in this group it is the graph that counts.
    model = nn.Sequential(case.fill(nn.Linear(3, 2)), Curve())
    x = case.tensor((case.integer(3, 5), 3)).requires_grad_()
    with _Fetching() as fetching:
        y = _as_tensor(impl(model, [x]))
    seen = {"y needs gradients": y.requires_grad, "y": y, "fetched to the CPU": fetching.seen}
    return {**seen, "the batch needs gradients afterwards": x.requires_grad}


trace = prediction.group("modes, statistics and gradients' switch are as before, also when the data fail", points=0.5)


@trace.scenario()
def predictions_leave_no_trace(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        model = mixed_model(case, 3, outer=outer, frozen=True)
        x = case.tensor((case.integer(5, 7), 3))
        impl(model, [x[:2], x[2:]])
        seen |= {
            f"in training afterwards, of {which}": in_training(model),
            f"parameters that need gradients afterwards, of {which}": trainable(model),
            **{f"{name}, of {which}": value for name, value in state(model[0][0]).items()},
        }
    seen |= {"gradients are recorded afterwards": torch.is_grad_enabled(), "inputs changed": case.changed()}
    with torch.no_grad():
        impl(model, [x])
        return seen | {"gradients are recorded afterwards where they were not": torch.is_grad_enabled()}


@trace.scenario()
def predictions_of_failing_data(impl, case):
    seen = {}
    for which, outer in MIXED.items():
        mixed = mixed_model(case, 3, outer=outer)
        x = case.tensor((4, 3))
        for error in (KeyError, OSError, KeyboardInterrupt):

            def batches(x=x, error=error):
                yield x
                raise error("no more")

            model = copy.deepcopy(mixed)
            came = _caught(lambda model=model, batches=batches: impl(model, batches()))
            seen[f"error that comes through of {error.__name__}, {which}"] = came
            seen[f"in training after {error.__name__}, of {which}"] = in_training(model)
            seen[f"gradients are recorded after {error.__name__}, of {which}"] = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
    return seen
