"""Problem set 3: what is asked of the pieces of `course_lib.modes`."""

import copy

import numpy as np
import torch
from torch import nn

from course_lib import running_stats
from course_lib.checks.modes_layers import THEMES, asked
from course_lib.checks.piece import Piece, WrongReturn, named

# --- inputs ---------------------------------------------------------------------------------------------------------

# Tables of more rows than columns, images with every axis of another length: a statistic over the wrong axes cannot
# come out with the right shape by chance. Few values a channel, so that n and n − 1 differ.


def _table(case):
    """(N, C), channels of different mean and spread."""
    n, c = case.integer(5, 7), case.integer(3, 4)
    return case.draw((n, c), case.uniform(-3, 3, c), case.uniform(1, 3, c))


def _maps(case):
    """(N, C, H, W)."""
    n, c, h, w = case.choice([(2, 3, 4, 5), (5, 2, 3, 4), (3, 4, 2, 5), (4, 5, 3, 2)])
    return case.draw((n, c, h, w), case.uniform(-3, 3, (c, 1, 1)), case.uniform(1, 3, (c, 1, 1)))


def _other_ranks(case):
    """Pairs of the axes in words and values of them: (N, C, L), then (N, C, D, H, W)."""
    for axes, shapes in (
        ("(N, C, L)", [(3, 4, 5), (4, 2, 3), (2, 5, 4)]),
        ("(N, C, D, H, W)", [(2, 3, 2, 4, 3), (3, 2, 4, 2, 2), (4, 3, 2, 2, 3)]),
    ):
        shape = case.choice(shapes)
        channels = (shape[1],) + (1,) * (len(shape) - 2)
        yield axes, case.draw(shape, case.uniform(-3, 3, channels), case.uniform(1, 3, channels))


def _per_channel(case, c, low, high, name, **options):
    return case.given_tensor(case.uniform(low, high, c), name, **options)


def _sizes(case, n):
    """How `n` samples are cut into batches: one alone, the others in two unequal parts."""
    cut = case.integer(1, (n - 2) // 2)
    return [cut, 1, n - 1 - cut] if cut != n - 1 - cut else [cut + 1, 1, n - 2 - cut]


class _Mood(nn.Module):
    """Stands for dropout, without its chance: turns the sign in training."""

    def forward(self, x):
        return -x if self.training else x


class _Curve(nn.Module):
    """Bends the values, so that a gradient depends on where it is taken."""

    def forward(self, x):
        return x - 0.3 * x * x


def _model(case, channels, *more, outer=True, frozen=False):
    """A layer that has seen other data and something that is off in eval, both in training.

    Each part has a mode of its own: the outermost module is in training if `outer`, its last part if not. And each
    parameter: bias needs no gradient if `frozen`.
    """
    layer = nn.BatchNorm1d(channels).to(case.torch_dtype)
    with torch.no_grad():
        for name, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("running_mean", -9, -6), ("running_var", 2, 5)):
            getattr(layer, name).copy_(_per_channel(case, channels, low, high, name))
        layer.num_batches_tracked += case.integer(3, 9)
    layer.bias.requires_grad_(not frozen)
    model = nn.Sequential(nn.Sequential(layer, _Mood()), *more, nn.Dropout(0.0))
    model.training, model[-1].training = outer, not outer
    return model


#: Both ways in which a model and what is inside of it may differ.
_MIXED = {"a model in training": True, "a model in eval, parts in training": False}


def _in_training(model):
    """Names of the modules in training, as an observation."""
    names = [name or "the model itself" for name, module in model.named_modules() if module.training]
    return ", ".join(names) or "none"


def _trainable(model):
    """Names of the parameters that need gradients, as an observation."""
    return ", ".join(name for name, p in model.named_parameters() if p.requires_grad) or "none"


def _caught(action):
    """Name of the exception that comes out of `action`, a keyboard interrupt too; "no error" without one."""
    try:
        action()
    except NotImplementedError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return type(error).__name__
    return "no error"


def _state(layer):
    """What a layer remembers, as observations."""
    state = {f"{name} afterwards": value for name, value in layer.state_dict().items() if name.startswith("running")}
    return {**state, "num_batches_tracked afterwards": layer.num_batches_tracked.item()}


# --- batch_norm_eval_backward ---------------------------------------------------------------------------------------

eval_backward = Piece(
    "modes.batch_norm_eval_backward",
    call="batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5) → (dx, dweight, dbias)",
)


def _eval_backward(impl, case, x, variances=(0.5, 4), **eps):
    c = x.shape[1]
    dy = case.tensor(x.shape, mean=1.0, name="dy")
    x = case.given_tensor(x, "x")
    mean = _per_channel(case, c, -3, 3, "running_mean")
    var = _per_channel(case, c, *variances, "running_var")
    weight = _per_channel(case, c, 0.5, 2, "weight")
    result = named(impl(dy, x, mean, var, weight, **eps), "dx", "dweight", "dbias")
    return {**result, "inputs need gradients": any(v.requires_grad for v in (dy, x, mean, var, weight))}


line = eval_backward.group("dx: a straight line per channel", points=0.75)


@line.scenario()
def eval_gradient_of_table(impl, case):
    return {"dx": _eval_backward(impl, case, _table(case), eps=case.number("eps", 0.5, 1))["dx"]}


@line.scenario(dtypes=("float32",))
def eval_gradient_with_default_eps(impl, case):
    # Variances of the size of the default eps.
    return {"dx": _eval_backward(impl, case, _maps(case), variances=(1e-5, 4e-5))["dx"]}


@line.scenario()
def eval_gradient_of_other_ranks(impl, case):
    return {f"dx of {axes}": _eval_backward(impl, case, x)["dx"] for axes, x in _other_ranks(case)}


parameters = eval_backward.group("dweight and dbias", points=0.5)


@parameters.scenario()
def eval_parameter_gradients_of_table(impl, case):
    result = _eval_backward(impl, case, _table(case), eps=case.number("eps", 0.5, 1))
    return {"dweight": result["dweight"], "dbias": result["dbias"]}


@parameters.scenario(dtypes=("float32",))
def eval_parameter_gradients_of_maps(impl, case):
    result = _eval_backward(impl, case, _maps(case))
    return {"dweight": result["dweight"], "dbias": result["dbias"]}


@parameters.scenario()
def eval_parameter_gradients_of_other_ranks(impl, case):
    seen = {}
    for axes, x in _other_ranks(case):
        result = _eval_backward(impl, case, x)
        seen |= {f"dweight of {axes}": result["dweight"], f"dbias of {axes}": result["dbias"]}
    return seen


untouched = eval_backward.group("inputs untouched", points=0.25)


@untouched.scenario()
def eval_backward_leaves_inputs_alone(impl, case):
    result = _eval_backward(impl, case, _table(case))
    seen = {name: result[name] for name in ("dbias", "inputs need gradients")}
    return {**seen, "inputs changed": case.changed()}


# --- BatchNormFunction ----------------------------------------------------------------------------------------------

function = Piece(
    "modes.BatchNormFunction",
    call="BatchNormFunction.apply(x, weight, bias, running_mean, running_var, training, momentum, eps) → y",
)


class _Applied:
    """Inputs of the function, drawn, and what comes of them."""

    def __init__(self, case, x, *, eps=(0.5, 1)):
        c = x.shape[1]
        self.eps = case.number("eps", *eps)
        self.x = case.given_tensor(x, "x").requires_grad_()
        self.given = {
            "weight": _per_channel(case, c, 0.5, 2, "weight").requires_grad_(),
            "bias": _per_channel(case, c, -2, 2, "bias").requires_grad_(),
            "running_mean": _per_channel(case, c, -3, 3, "running_mean", watch=False),
            "running_var": _per_channel(case, c, 0.5, 4, "running_var", watch=False),
        }
        # A mean that is not zero, and a slope along x: both coupling terms matter.
        self.dy = case.given_tensor(case.draw(x.shape, 1.0) + 0.5 * x, "dy")

    def without(self, *missing, constant=()):
        """The same numbers once more, as tensors of their own: None for some, no gradient for those that are constant.

        Args:
            missing: names of what is None.
            constant: names of what needs no gradient, x among them.
        """
        other = copy.copy(self)
        other.x = self._anew("x", self.x, constant)
        other.given = {
            name: None if name in missing else self._anew(name, v, constant) for name, v in self.given.items()
        }
        return other

    @staticmethod
    def _anew(name, tensor, constant):
        return tensor.detach().clone().requires_grad_(tensor.requires_grad and name not in constant)

    def apply(self, impl, training, *, momentum=0.1):
        return impl.apply(self.x, *self.given.values(), training, momentum, self.eps)

    def gradients(self, y):
        y.backward(self.dy)
        leaves = {"dx": self.x, "dweight": self.given["weight"], "dbias": self.given["bias"]}
        return {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}

    def statistics(self):
        return {
            name: self.given[name].clone() for name in ("running_mean", "running_var") if self.given[name] is not None
        }


def _made_by_a_function(y):
    """Whether the gradient of y is what somebody wrote, and not autograd's work."""
    return isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)


_MODES = {"training": True, "eval": False}


output = function.group("y in training", points=0.5)


@output.scenario()
def function_of_table(impl, case):
    return {"y": _Applied(case, _table(case)).apply(impl, True)}


@output.scenario(dtypes=("float32",))
def function_of_maps(impl, case):
    # So small a spread that an eps of the usual size shows.
    given = _Applied(case, 0.1 * _maps(case), eps=(0.01, 0.03))
    return {"y": given.apply(impl, True), "inputs changed": case.changed()}


@output.scenario()
def function_of_other_ranks(impl, case):
    return {f"y of {axes}": _Applied(case, x).apply(impl, True) for axes, x in _other_ranks(case)}


through = function.group("gradients in training: the batch's statistics move with x", points=1)


def _gradients_of_other_ranks(impl, case, training):
    seen = {}
    for axes, x in _other_ranks(case):
        given = _Applied(case, x)
        y = given.apply(impl, training)
        seen |= {f"{name} of {axes}": value for name, value in {"y": y, **given.gradients(y)}.items()}
    return seen


def _gradients_of_some(impl, case, training):
    """Gradients where not everything needs one: parameters that are frozen, or a first layer's input."""
    drawn, seen = _Applied(case, _table(case)), {}
    for constant in (("x",), ("weight",), ("bias",), ("weight", "bias")):
        given = drawn.without(constant=constant)
        for name, value in given.gradients(given.apply(impl, training)).items():
            seen[f"{name} where {' and '.join(constant)} needs none"] = value
    return seen


@through.scenario()
def function_gradients_of_table(impl, case):
    given = _Applied(case, _table(case))
    y = given.apply(impl, True)
    return {**given.gradients(y), "a Function made y, with a backward of its own": _made_by_a_function(y)}


@through.scenario()
def function_gradients_of_maps(impl, case):
    given = _Applied(case, _maps(case))
    return given.gradients(given.apply(impl, True)) | {"inputs changed": case.changed()}


@through.scenario()
def function_gradients_of_other_ranks(impl, case):
    return _gradients_of_other_ranks(impl, case, True)


@through.scenario()
def function_gradients_of_some(impl, case):
    return _gradients_of_some(impl, case, True)


constant = function.group("y and gradients in eval: the running statistics are constants", points=1)


@constant.scenario()
def function_in_eval_of_table(impl, case):
    given = _Applied(case, _table(case))
    y = given.apply(impl, False)
    return {"y": y, **given.gradients(y), "a Function made y, with a backward of its own": _made_by_a_function(y)}


@constant.scenario()
def function_in_eval_of_one_sample(impl, case):
    given = _Applied(case, _table(case)[:1])
    y = given.apply(impl, False)
    return {"y": y, **given.gradients(y)}


@constant.scenario(dtypes=("float32",))
def function_in_eval_of_maps(impl, case):
    given = _Applied(case, _maps(case))
    y = given.apply(impl, False)
    return {"y": y, **given.gradients(y), "inputs changed": case.changed()}


@constant.scenario()
def function_in_eval_of_other_ranks(impl, case):
    return _gradients_of_other_ranks(impl, case, False)


@constant.scenario()
def function_in_eval_of_some(impl, case):
    return _gradients_of_some(impl, case, False)


later = function.group("an eval gradient stays right when the running statistics move before it", points=0.25)


@later.scenario()
def function_in_eval_then_training(impl, case):
    given = _Applied(case, _table(case))
    y = given.apply(impl, False)
    with torch.no_grad():
        given.apply(impl, True, momentum=0.6)
    gradients = given.gradients(y)
    return {name: gradients[name] for name in ("dx", "dweight")}


buffers = function.group("running statistics move in place when training, and only then", points=0.75)


@buffers.scenario()
def function_moves_statistics(impl, case):
    given = _Applied(case, _maps(case))
    mean, var = given.given["running_mean"], given.given["running_var"]
    given.apply(impl, True, momentum=case.number("momentum", 0.1, 0.4))
    once = {"running_mean after a step": mean.detach().clone(), "running_var after a step": var.detach().clone()}
    given.apply(impl, True, momentum=case.number("momentum", 0.6, 0.9))
    twice = {"running_mean after two": mean.detach().clone(), "running_var after two": var.detach().clone()}
    again = given.without(constant=("x", "weight", "bias"))
    with torch.no_grad():
        again.apply(impl, True, momentum=case.number("momentum", 0.1, 0.4))
    without = {f"{name} after one without gradients": value for name, value in again.statistics().items()}
    return once | twice | without | {"they need gradients": mean.requires_grad or var.requires_grad}


@buffers.scenario()
def function_moves_statistics_of_other_ranks(impl, case):
    seen = {}
    for axes, x in (("(N, C)", _table(case)), *_other_ranks(case)):
        given = _Applied(case, x)
        given.apply(impl, True, momentum=case.number("momentum", 0.2, 0.8))
        seen |= {f"{name} of {axes}": value for name, value in given.statistics().items()}
    return seen


@buffers.scenario()
def function_moves_statistics_all_the_way_or_not(impl, case):
    drawn, seen = _Applied(case, _table(case)), {}
    for momentum in (0.0, 1.0):
        given = drawn.without()
        given.apply(impl, True, momentum=momentum)
        seen |= {f"{name} with momentum {momentum:.0f}": value for name, value in given.statistics().items()}
    return seen


@buffers.scenario()
def function_leaves_statistics_alone_in_eval(impl, case):
    given = _Applied(case, _table(case))
    given.apply(impl, False, momentum=case.number("momentum", 0.1, 0.4))
    return given.statistics()


absent = function.group("weight, bias and running statistics may be None", points=0.5)


def _without(impl, case, *combinations):
    """y, gradients and running statistics in both modes, for each combination of what is missing."""
    drawn, seen = _Applied(case, _table(case)), {}
    for missing in combinations:
        for mode, training in _MODES.items():
            given = drawn.without(*missing)
            y = given.apply(impl, training, momentum=0.3)
            observed = {"y": y, **given.gradients(y), **given.statistics()}
            where = f"in {mode}, without {', '.join(missing)}"
            seen |= {f"{name} {where}": value for name, value in observed.items()}
    return seen


_STATISTICS = ("running_mean", "running_var")


@absent.scenario()
def function_without_weight(impl, case):
    return _without(impl, case, ("weight",))


@absent.scenario()
def function_without_bias(impl, case):
    return _without(impl, case, ("bias",))


@absent.scenario()
def function_without_both(impl, case):
    return _without(impl, case, ("weight", "bias"))


@absent.scenario()
def function_without_statistics(impl, case):
    return _without(impl, case, _STATISTICS, ("weight", *_STATISTICS), ("bias", *_STATISTICS))


@absent.scenario()
def function_without_anything(impl, case):
    return _without(impl, case, ("weight", "bias", *_STATISTICS))


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
    model.training, inner.training = case.choice([(True, False), (False, True)])
    before = _in_training(model)
    return {"of a nested model": _as_fact(_listed(impl, model)), "modes as before": _in_training(model) == before}


kinds = modes.group("every kind of Batch Normalization layer, and no other layer", points=0.75)


class _Normalise(nn.BatchNorm2d):
    """A kind of its own, by derivation."""


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
        "a class derived from BatchNorm2d": _Normalise(2),
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

switch = Piece("modes.evaluating", call="with evaluating(model): …")

inside = switch.group("everything is in eval inside", points=0.5)


@inside.scenario()
def modes_inside(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        model = _mixed(case, outer)
        x = case.tensor((case.integer(3, 5), model[0][0].num_features))
        with impl(model):
            seen |= {
                f"in training, of {which}": _in_training(model),
                f"output of the first part of {which}": model[0](x),
                f"parameters that need gradients, of {which}": _trainable(model),
                f"gradients are recorded, of {which}": torch.is_grad_enabled(),
            }
    return seen


def _mixed(case, outer):
    return _model(case, case.integer(2, 4), nn.Sequential(nn.Linear(2, 2), nn.Dropout()), outer=outer, frozen=True)


back = switch.group("each module's own mode afterwards", points=0.5)


def _afterwards(case, model, which):
    """What is to be as before; the output comes last, since it moves the statistics."""
    seen = {f"in training afterwards, of {which}": _in_training(model)}
    seen[f"parameters that need gradients afterwards, of {which}"] = _trainable(model)
    x = case.tensor((case.integer(3, 5), model[0][0].num_features))
    return seen | {f"output of the first part of {which} afterwards": model[0](x)}


@back.scenario()
def modes_afterwards(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        model = _mixed(case, outer)
        with impl(model):
            pass
        seen |= _afterwards(case, model, which)
    return seen


@back.scenario()
def modes_after_being_switched_inside(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        for training in (True, False):
            model = _model(case, 2, outer=outer)
            with impl(model):
                model.train(training)
            seen[f"in training afterwards, of {which}, after train({training}) inside"] = _in_training(model)
    return seen


@back.scenario()
def modes_after_one_inside_another(impl, case):
    model = _model(case, case.integer(2, 4))
    with impl(model):
        with impl(model):
            pass
        seen = {"in training after the inner one": _in_training(model)}
    return seen | _afterwards(case, model, "a model")


failed = switch.group("also after an exception, which comes through", points=0.5)


@failed.scenario()
def modes_after_an_exception(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        mixed = _model(case, case.integer(2, 4), outer=outer, frozen=True)
        # The last is what ends a validation loop that takes too long, and no Exception.
        for error in (KeyError, RuntimeError, KeyboardInterrupt):
            model = copy.deepcopy(mixed)

            def failing(model=model, error=error):
                with impl(model):
                    raise error("inside")

            seen[f"error that comes through of {error.__name__}, {which}"] = _caught(failing)
            seen[f"in training after {error.__name__}, of {which}"] = _in_training(model)
        seen |= _afterwards(case, model, which)
    return seen


# --- predict --------------------------------------------------------------------------------------------------------

prediction = Piece("modes.predict", call="predict(model, batches) → tensor")


def _as_tensor(y):
    if not isinstance(y, torch.Tensor):
        raise WrongReturn(f"expected one tensor to be returned, got {type(y).__name__}")
    return y


outputs = prediction.group("outputs of all the data, however they are cut", points=0.75)


@outputs.scenario()
def predictions(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        model = _model(case, 3, _Curve(), outer=outer)
        x = case.tensor((case.integer(6, 9), 3), std=2.0)
        pieces = x.split(_sizes(case, len(x)))
        seen[f"y of {which}"] = _as_tensor(impl(model, list(pieces)))
        seen[f"y of {which}, in one batch"] = _as_tensor(impl(model, [x]))
    return seen


@outputs.scenario()
def predictions_from_a_generator(impl, case):
    model = _model(case, 4)
    x = case.tensor((case.integer(6, 9), 4), std=2.0)
    return {"y": _as_tensor(impl(model, (batch for batch in x.split(_sizes(case, len(x))))))}


no_graph = prediction.group("no graph is recorded", points=0.25)


@no_graph.scenario()
def predictions_without_graph(impl, case):
    # Nothing that has a mode: in this group it is the graph that counts.
    model = nn.Sequential(case.fill(nn.Linear(3, 2)), _Curve())
    y = _as_tensor(impl(model, [case.tensor((case.integer(3, 5), 3)).requires_grad_()]))
    return {"y needs gradients": y.requires_grad, "y": y}


trace = prediction.group("modes, statistics and gradients' switch are as before, also when the data fail", points=0.5)


@trace.scenario()
def predictions_leave_no_trace(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        model = _model(case, 3, outer=outer, frozen=True)
        x = case.tensor((case.integer(5, 7), 3))
        impl(model, [x[:2], x[2:]])
        seen |= {
            f"in training afterwards, of {which}": _in_training(model),
            f"parameters that need gradients afterwards, of {which}": _trainable(model),
            **{f"{name}, of {which}": value for name, value in _state(model[0][0]).items()},
        }
    seen |= {"gradients are recorded afterwards": torch.is_grad_enabled(), "inputs changed": case.changed()}
    with torch.no_grad():
        impl(model, [x])
        return seen | {"gradients are recorded afterwards where they were not": torch.is_grad_enabled()}


@trace.scenario()
def predictions_of_failing_data(impl, case):
    seen = {}
    for which, outer in _MIXED.items():
        mixed = _model(case, 3, outer=outer)
        x = case.tensor((4, 3))
        for error in (KeyError, OSError, KeyboardInterrupt):

            def batches(x=x, error=error):
                yield x
                raise error("no more")

            model = copy.deepcopy(mixed)
            came = _caught(lambda model=model, batches=batches: impl(model, batches()))
            seen[f"error that comes through of {error.__name__}, {which}"] = came
            seen[f"in training after {error.__name__}, of {which}"] = _in_training(model)
            seen[f"gradients are recorded after {error.__name__}, of {which}"] = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
    return seen


# --- the clinic -----------------------------------------------------------------------------------------------------

# One group each: the code as it is handed out scores nothing.

no_eval = Piece("modes.clinic_no_eval", call="clinic_no_eval(model, x, labels) → float")
company = no_eval.group("the same prediction in any company, and no trace", points=0.5)


def _accuracy(impl, case, *, outer):
    classes, n = case.integer(3, 5), case.integer(7, 9)
    model = _model(case, classes, outer=outer)
    best = case.integer(0, classes - 1)
    x = case.draw((n, classes), std=0.5)
    x[:, best] += 9  # in eval, all samples are of this class
    x = case.given_tensor(x, "x")
    right = case.integer(n // 2 + 1, n - 2)
    labels = torch.full((n,), best)
    labels[right:] = (best + 1) % classes
    seen = {
        "accuracy": _fraction(impl(model, x, labels)),
        "accuracy of some": _fraction(impl(model, x[2:], labels[2:])),
    }
    return seen | {"in training afterwards": _in_training(model), **_state(model[0][0])}


def _fraction(value):
    """A number, of whatever type: the last digits of float32 are enough."""
    if isinstance(value, bool) or not isinstance(value, float | int | np.number | torch.Tensor | np.ndarray):
        raise WrongReturn(f"expected a float to be returned, got {type(value).__name__}: is there a return?")
    return float(value)


@company.scenario(within={"accuracy": 1e-6, "accuracy of some": 1e-6})
def accuracy_of_a_training_model(impl, case):
    return _accuracy(impl, case, outer=True)


@company.scenario(within={"accuracy": 1e-6, "accuracy of some": 1e-6})
def accuracy_of_a_model_in_eval(impl, case):
    return _accuracy(impl, case, outer=False)


plain_buffers = Piece("modes.clinic_plain_buffers", call="clinic_plain_buffers(num_features, momentum=0.1)")
kept = plain_buffers.group("the running mean is state: saved, moved, updated in place", points=0.5)


@kept.scenario()
def centring_layer(impl, case):
    c, momentum = case.integer(2, 4), case.number("momentum", 0.2, 0.4)
    layer = impl(c, momentum=momentum).to(case.torch_dtype)
    held = layer.running_mean
    x = case.tensor((case.integer(3, 6), c), mean=2.0)
    dy = case.tensor(x.shape, mean=1.0, name="dy")
    y = layer(x.requires_grad_())
    gradient = torch.autograd.grad(y, x, dy)[0]
    layer(case.tensor((4, c), mean=-1.0, name="the next x"))
    seen = {
        "y in training": y,
        "dx in training": gradient,
        "running_mean in the state dict": layer.state_dict().get("running_mean"),
        "running_mean, held since before": held,
        "it needs gradients": held.requires_grad,
        "keys of the state dict": ", ".join(layer.state_dict()),
        "parameters an optimiser sees": len(list(layer.parameters())),
    }
    layer.eval()
    y = layer(x)
    seen |= {"y in eval": y, "dx in eval": torch.autograd.grad(y, x, dy)[0], "inputs changed": case.changed()}
    return seen | {"running_mean after eval": layer.running_mean.clone()}


@kept.scenario()
def centring_layer_elsewhere(impl, case):
    layer = impl(case.integer(2, 4)).to(torch.float16)
    cast = str(layer.running_mean.dtype)
    return {"dtype after .to(torch.float16)": cast, "device after .to": str(layer.to("meta").running_mean.device)}


@kept.scenario()
def centring_layer_by_default(impl, case):
    c = case.integer(2, 4)
    layer = impl(c).to(case.torch_dtype)
    layer(case.tensor((5, c), mean=3.0))
    return {"running_mean with the default momentum": layer.running_mean}


graph = Piece("modes.clinic_graph_in_buffers", call="clinic_graph_in_buffers(running_mean, x, momentum) → None")
record = graph.group("the running mean moves in place and holds no graph", points=0.5)


def _running_mean(impl, case, values):
    c = values.shape[1]
    running = _per_channel(case, c, -2, 2, "running_mean", watch=False)
    slope = _per_channel(case, 1, 0.5, 2, "slope").requires_grad_()
    x, momentum = case.given_tensor(values, "x"), case.number("momentum", 0.1, 0.4)
    for _ in range(2):
        batch = slope * x
        kept = batch.detach().clone()
        impl(running, batch, momentum)
        batch.square().sum().backward()
    return {
        "it needs gradients": running.requires_grad,
        "running_mean": running,
        "gradient of the caller": slope.grad,
        "inputs changed": "" if torch.equal(batch, kept) else "x",
    }


@record.scenario()
def running_mean_of_tables(impl, case):
    return _running_mean(impl, case, _table(case))


@record.scenario()
def running_mean_of_maps(impl, case):
    return _running_mean(impl, case, _maps(case))


@record.scenario()
def running_mean_of_other_ranks(impl, case):
    return {f"running_mean of {axes}": _running_mean(impl, case, x)["running_mean"] for axes, x in _other_ranks(case)}


grad_mode = Piece("modes.clinic_grad_mode", call="clinic_grad_mode(model, x) → tensor")
sensitivity = grad_mode.group("the gradient of the model as it predicts, and no trace", points=0.5)


def _gradient_of_the_input(impl, case, model):
    layer = model[0][0]
    layer.weight.grad = _per_channel(case, 3, 1, 2, "gradient of weight").clone()
    x = case.tensor((case.integer(4, 6), 3), std=2.0)
    result = impl(model, x)
    seen = {"result": result, "gradients are recorded afterwards": torch.is_grad_enabled()}
    needing = x.clone().requires_grad_()
    impl(model, needing)
    seen["x that needed gradients still does, and has none"] = needing.requires_grad and needing.grad is None
    with torch.no_grad():
        seen |= {"result where gradients are off": impl(model, x), "result of two": impl(model, x[:2])}
        seen["gradients are recorded afterwards where they were not"] = torch.is_grad_enabled()
    return {
        **seen,
        "the result needs gradients": result.requires_grad,
        "x needs gradients": x.requires_grad,
        "gradient of weight afterwards": layer.weight.grad,
        "parameters that need gradients afterwards": _trainable(model),
        "in training afterwards": _in_training(model),
        **_state(layer),
        "inputs changed": case.changed(),
    }


@sensitivity.scenario()
def gradient_of_the_input(impl, case):
    model = _model(case, 3, _Curve())
    seen = _gradient_of_the_input(impl, case, model)
    return seen | {"bias has a gradient": model[0][0].bias.grad is not None}


@sensitivity.scenario()
def gradient_of_the_input_of_a_model_in_eval(impl, case):
    return _gradient_of_the_input(impl, case, _model(case, 3, _Curve(), outer=False, frozen=True))


new_value = Piece("modes.clinic_momentum", call="clinic_momentum(running, batch, momentum) → tensor")
weighed = new_value.group("momentum weighs the new value", points=0.5)


@weighed.scenario()
def weighted_statistic(impl, case):
    c = case.integer(2, 4)
    running, batch = case.tensor((c,), mean=3.0, name="running"), case.tensor((c,), mean=-3.0, name="batch")
    results = {
        "result": impl(running, batch, case.number("momentum", 0.1, 0.4)),
        "with momentum 0": impl(running, batch, 0.0),
        "with momentum 1": impl(running, batch, 1.0),
    }
    new = all(result is not running and result is not batch for result in results.values())
    return {**results, "new tensors": new, "inputs changed": case.changed()}


unbiased = Piece("modes.clinic_biased_var", call="clinic_biased_var(running_var, x, momentum) → None")
remembered = unbiased.group("the running variance takes the unbiased variance, in place", points=0.5)


def _running_var(impl, case, values):
    running = _per_channel(case, values.shape[1], 0.5, 4, "running_var", watch=False)
    x = case.given_tensor(values, "x").requires_grad_()
    for momentum in (case.number("momentum", 0.1, 0.4), case.number("momentum", 0.6, 0.9)):
        impl(running, x, momentum)
    return {"it needs gradients": running.requires_grad, "running_var": running, "inputs changed": case.changed()}


@remembered.scenario()
def running_var_of_table(impl, case):
    return _running_var(impl, case, _table(case))


@remembered.scenario()
def running_var_of_maps(impl, case):
    return _running_var(impl, case, _maps(case))


@remembered.scenario()
def running_var_of_other_ranks(impl, case):
    return {f"running_var of {axes}": _running_var(impl, case, x)["running_var"] for axes, x in _other_ranks(case)}


# --- accepts --------------------------------------------------------------------------------------------------------

accepted = Piece("modes.accepts", call="accepts(cls) → bool")

_AREAS = {
    "eval": "rejects layers that do not normalise by the running statistics in eval",
    "mode": "rejects layers that go by something else than the mode, or fall over odd batches",
    "statistics": "rejects layers with other statistics or another formula",
    "arguments": "rejects layers that ignore or misread an argument",
    "state": "rejects layers that do not keep their state as PyTorch's does",
    "gradients": "rejects layers with wrong gradients, a graph in a buffer, a changed input, another dtype or layout",
}


def _answer(impl, cls):
    """What a test says about a layer, as a fact."""
    try:
        verdict = impl(cls)
    except NotImplementedError:
        raise
    except Exception as error:
        return f"raised {type(error).__name__}"
    if isinstance(verdict, torch.Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    if not isinstance(verdict, bool | np.bool_):
        raise WrongReturn(f"expected True or False to be returned, got {type(verdict).__name__}: is there a return?")
    return "accepted" if verdict else "rejected"


def verdicts(impl, case):
    """One answer for every layer. Right ones and wrong ones come mixed, in an order that says nothing."""
    seen, numbers = {}, dict.fromkeys(THEMES, 0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever a notebook has set for its own experiments
    try:
        for theme, cls in asked(case):
            numbers[theme] += 1
            seen[f"{theme}: layer {numbers[theme]}"] = _answer(impl, cls)
    finally:
        torch.set_default_dtype(before)
    return seen


for _theme in THEMES:
    # A right layer counts in every area: an examiner who fails it has not examined.
    accepted.group(_AREAS[_theme], points=0.5).scenario(
        patience=5,  # two dozen layers, each looked at from all sides
        concerns=lambda name, want, theme=_theme: name.startswith(f"{theme}:") or want == {"fact": "accepted"},
    )(verdicts)
