"""Problem set 3, the two gradients: what is asked of `batch_norm_eval_backward` and `BatchNormFunction`."""

import copy

import torch

from course_lib.checks.modes_inputs import maps, one_channel, other_ranks, per_channel, table
from course_lib.checks.piece import Piece, named
from course_lib.checks.running_stats_inputs import rearranged

# --- batch_norm_eval_backward ---------------------------------------------------------------------------------------

eval_backward = Piece(
    "modes.batch_norm_eval_backward",
    call="batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5) → (dx, dweight, dbias)",
)


def _weight(case, c):
    """Of either sign, and zero where there are channels enough: some weights start there."""
    values = case.uniform(0.5, 2, c)
    values[0] *= -1
    if c > 2:
        values[1] = 0
    return case.given_tensor(values, "weight")


def _eval_backward(impl, case, x, *by_position, variances=(0.5, 4), arranged=lambda tensor: tensor, **eps):
    c = x.shape[1]
    dy = arranged(case.tensor(x.shape, mean=1.0, name="dy"))
    x = arranged(case.given_tensor(x, "x"))
    mean = per_channel(case, c, -3, 3, "running_mean")
    var = per_channel(case, c, *variances, "running_var")
    weight = _weight(case, c)
    result = named(impl(dy, x, mean, var, weight, *by_position, **eps), "dx", "dweight", "dbias")
    return {**result, "inputs need gradients": any(v.requires_grad for v in (dy, x, mean, var, weight))}


line = eval_backward.group("dx: a straight line per channel", points=0.75)


@line.scenario()
def eval_gradient_of_table(impl, case):
    return {"dx": _eval_backward(impl, case, table(case), case.number("eps", 0.5, 1))["dx"]}


@line.scenario()
def eval_gradient_of_one_sample(impl, case):
    # Constants need no company.
    return {"dx": _eval_backward(impl, case, table(case)[:1])["dx"]}


@line.scenario(dtypes=("float32",))
def eval_gradient_with_default_eps(impl, case):
    # Variances of the size of the default eps.
    seen = {"dx": _eval_backward(impl, case, maps(case), variances=(1e-5, 4e-5))["dx"]}
    # None at all is one, too.
    return seen | {"dx with eps 0": _eval_backward(impl, case, table(case), variances=(1e-5, 4e-5), eps=0.0)["dx"]}


@line.scenario()
def eval_gradient_of_other_ranks(impl, case):
    return {f"dx of {axes}": _eval_backward(impl, case, x, arranged=rearranged)["dx"] for axes, x in other_ranks(case)}


parameters = eval_backward.group("dweight and dbias", points=0.5)


@parameters.scenario()
def eval_parameter_gradients_of_table(impl, case):
    result = _eval_backward(impl, case, table(case), eps=case.number("eps", 0.5, 1))
    return {"dweight": result["dweight"], "dbias": result["dbias"]}


@parameters.scenario(dtypes=("float32",))
def eval_parameter_gradients_of_maps(impl, case):
    result = _eval_backward(impl, case, maps(case))
    return {"dweight": result["dweight"], "dbias": result["dbias"]}


@parameters.scenario()
def eval_parameter_gradients_of_other_ranks(impl, case):
    seen = {}
    for axes, x in other_ranks(case):
        result = _eval_backward(impl, case, x)
        seen |= {f"dweight of {axes}": result["dweight"], f"dbias of {axes}": result["dbias"]}
    return seen


@parameters.scenario()
def eval_parameter_gradients_of_one_channel(impl, case):
    seen = {}
    for axes, x in one_channel(case):
        result = _eval_backward(impl, case, x)
        seen |= {f"dweight of {axes}": result["dweight"], f"dbias of {axes}": result["dbias"]}
    return seen


untouched = eval_backward.group("inputs untouched", points=0.25)


@untouched.scenario()
def eval_backward_leaves_inputs_alone(impl, case):
    result = _eval_backward(impl, case, table(case))
    seen = {name: result[name] for name in ("dbias", "inputs need gradients")}
    recorded = torch.is_grad_enabled()
    return {**seen, "inputs changed": case.changed(), "gradients are recorded afterwards": recorded}


@untouched.scenario()
def eval_backward_leaves_maps_alone(impl, case):
    result = _eval_backward(impl, case, maps(case))
    return {"inputs need gradients": result["inputs need gradients"], "inputs changed": case.changed()}


# --- BatchNormFunction ----------------------------------------------------------------------------------------------

function = Piece(
    "modes.BatchNormFunction",
    call="BatchNormFunction.apply(x, weight, bias, running_mean, running_var, training, momentum, eps) → y",
)


_STATISTICS = ("running_mean", "running_var")


class _Applied:
    """Inputs of the function, drawn, and what comes of them."""

    def __init__(self, case, x, *, eps=(0.5, 1)):
        c = x.shape[1]
        self.eps = case.number("eps", *eps)
        self.x = case.given_tensor(x, "x").requires_grad_()
        self.given = {
            "weight": _weight(case, c).requires_grad_(),
            "bias": per_channel(case, c, -2, 2, "bias").requires_grad_(),
            "running_mean": per_channel(case, c, -3, 3, "running_mean", watch=False),
            "running_var": per_channel(case, c, 0.5, 4, "running_var", watch=False),
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
        return {name: self.given[name].clone() for name in _STATISTICS if self.given[name] is not None}


def _made_by_a_function(y):
    """Whether the gradient of y is what somebody wrote, and not autograd's work."""
    return isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)


_MODES = {"training": True, "eval": False}


output = function.group("y in training", points=0.5)


@output.scenario()
def function_of_table(impl, case):
    return {"y": _Applied(case, table(case)).apply(impl, True)}


@output.scenario(dtypes=("float32",))
def function_of_maps(impl, case):
    # So small a spread that an eps of the usual size shows.
    given = _Applied(case, 0.1 * maps(case), eps=(0.01, 0.03))
    return {"y": given.apply(impl, True), "inputs changed": case.changed()}


@output.scenario()
def function_of_other_ranks(impl, case):
    seen = {}
    for axes, x in other_ranks(case):
        given = _Applied(case, x)
        given.x = rearranged(given.x)
        seen[f"y of {axes}"] = given.apply(impl, True)
    return seen


@output.scenario()
def function_of_few_values(impl, case):
    # One sample of many values, and as few as can be.
    seen = {"one sample of maps": maps(case)[:1], "two values": table(case)[:2]}
    return {f"y of {words}": _Applied(case, x).apply(impl, True) for words, x in seen.items()}


through = function.group("gradients in training: the batch's statistics move with x", points=1)


def _gradients_of_other_ranks(impl, case, training):
    seen = {}
    for axes, x in other_ranks(case):
        given = _Applied(case, x)
        y = given.apply(impl, training)
        if training:
            given.dy = rearranged(given.dy)
        seen |= {f"{name} of {axes}": value for name, value in {"y": y, **given.gradients(y)}.items()}
    return seen


def _gradients_of_one_channel(impl, case, training):
    seen = {}
    for axes, x in one_channel(case):
        given = _Applied(case, x)
        gradients = given.gradients(given.apply(impl, training))
        seen |= {f"{name} of {axes}": value for name, value in gradients.items()}
    return seen


def _gradients_of_two(impl, case, training):
    """Gradients for two dy at one output, as gradcheck takes them; the second is one column for every channel."""
    given = _Applied(case, table(case))
    y = given.apply(impl, training)
    leaves = {"dx": given.x, "dweight": given.given["weight"], "dbias": given.given["bias"]}
    second = case.tensor((len(y), 1), name="the second dy").expand_as(y)
    seen = {}
    for which, dy in (("first", given.dy), ("second", second)):
        gradients = torch.autograd.grad(y, list(leaves.values()), dy, retain_graph=True)
        seen |= {f"{name} for the {which} dy": value for name, value in zip(leaves, gradients, strict=True)}
    return seen


def _gradients_of_some(impl, case, training):
    """Gradients where not everything needs one: parameters that are frozen, or a first layer's input."""
    drawn, seen = _Applied(case, table(case)), {}
    for constant in (("x",), ("weight",), ("bias",), ("weight", "bias")):
        given = drawn.without(constant=constant)
        y = given.apply(impl, training)
        for name, value in {"y": y, **given.gradients(y)}.items():
            seen[f"{name} where {' and '.join(constant)} needs none"] = value
    return seen


@through.scenario()
def function_gradients_of_table(impl, case):
    given = _Applied(case, table(case))
    y = given.apply(impl, True)
    return {**given.gradients(y), "a Function made y, with a backward of its own": _made_by_a_function(y)}


@through.scenario()
def function_gradients_of_maps(impl, case):
    given = _Applied(case, maps(case))
    return given.gradients(given.apply(impl, True)) | {"inputs changed": case.changed()}


@through.scenario()
def function_gradients_of_other_ranks(impl, case):
    return _gradients_of_other_ranks(impl, case, True)


@through.scenario()
def function_gradients_of_some(impl, case):
    return _gradients_of_some(impl, case, True)


@through.scenario()
def function_gradients_of_one_channel(impl, case):
    return _gradients_of_one_channel(impl, case, True)


@through.scenario()
def function_gradients_of_two(impl, case):
    return _gradients_of_two(impl, case, True)


constant = function.group("y and gradients in eval: the running statistics are constants", points=1)


@constant.scenario()
def function_in_eval_of_table(impl, case):
    given = _Applied(case, table(case))
    y = given.apply(impl, False)
    return {"y": y, **given.gradients(y), "a Function made y, with a backward of its own": _made_by_a_function(y)}


@constant.scenario()
def function_in_eval_of_one_sample(impl, case):
    given = _Applied(case, table(case)[:1])
    y = given.apply(impl, False)
    # None at all is an eps, too; in training PyTorch refuses it.
    without_eps = _Applied(case, table(case)[:1], eps=(0, 0)).apply(impl, False)
    return {"y": y, **given.gradients(y), "y with eps 0": without_eps}


@constant.scenario(dtypes=("float32",))
def function_in_eval_of_maps(impl, case):
    given = _Applied(case, maps(case))
    y = given.apply(impl, False)
    return {"y": y, **given.gradients(y), "inputs changed": case.changed()}


@constant.scenario()
def function_in_eval_of_other_ranks(impl, case):
    return _gradients_of_other_ranks(impl, case, False)


@constant.scenario()
def function_in_eval_of_some(impl, case):
    return _gradients_of_some(impl, case, False)


@constant.scenario()
def function_in_eval_of_one_channel(impl, case):
    return _gradients_of_one_channel(impl, case, False)


@constant.scenario()
def function_in_eval_of_two(impl, case):
    return _gradients_of_two(impl, case, False)


later = function.group("an eval gradient stays right when the running statistics move before it", points=0.25)


@later.scenario()
def function_in_eval_then_training(impl, case):
    given = _Applied(case, table(case))
    y = given.apply(impl, False)
    with torch.no_grad():
        given.apply(impl, True, momentum=0.6)
    gradients = given.gradients(y)
    return {name: gradients[name] for name in ("dx", "dweight")}


buffers = function.group("running statistics move in place when training, and only then", points=0.75)


@buffers.scenario()
def function_moves_statistics(impl, case):
    given = _Applied(case, maps(case))
    mean, var = (given.given[name] for name in _STATISTICS)
    # As others hold them, a state dict for one: tensors of their own in the same memory.
    held = {name: given.given[name].detach() for name in _STATISTICS}
    given.apply(impl, True, momentum=case.number("momentum", 0.1, 0.4))
    once = {f"{name} after a step": value.clone() for name, value in held.items()}
    given.apply(impl, True, momentum=case.number("momentum", 0.6, 0.9))
    twice = {f"{name} after two": value.clone() for name, value in held.items()}
    again = given.without(constant=("x", "weight", "bias"))
    with torch.no_grad():
        again.apply(impl, True, momentum=case.number("momentum", 0.1, 0.4))
    without = {f"{name} after one without gradients": value for name, value in again.statistics().items()}
    return once | twice | without | {"they need gradients": mean.requires_grad or var.requires_grad}


@buffers.scenario()
def function_moves_statistics_of_other_ranks(impl, case):
    seen = {}
    for axes, x in (("(N, C)", table(case)), *other_ranks(case)):
        given = _Applied(case, x)
        given.apply(impl, True, momentum=case.number("momentum", 0.2, 0.8))
        seen |= {f"{name} of {axes}": value for name, value in given.statistics().items()}
    return seen


@buffers.scenario()
def function_moves_statistics_all_the_way_or_not(impl, case):
    drawn, seen = _Applied(case, table(case)), {}
    for momentum in (0.0, 1.0):
        given = drawn.without()
        given.apply(impl, True, momentum=momentum)
        seen |= {f"{name} with momentum {momentum:.0f}": value for name, value in given.statistics().items()}
    return seen


@buffers.scenario()
def function_leaves_statistics_alone_in_eval(impl, case):
    given = _Applied(case, table(case))
    given.apply(impl, False, momentum=case.number("momentum", 0.1, 0.4))
    return given.statistics()


absent = function.group("weight, bias and running statistics may be None", points=0.5)


def _without(impl, case, *combinations):
    """y, gradients and running statistics in both modes, for each combination of what is missing."""
    drawn, seen = _Applied(case, table(case)), {}
    for missing in combinations:
        for mode, training in _MODES.items():
            given = drawn.without(*missing)
            y = given.apply(impl, training, momentum=0.3)
            observed = {"y": y, **given.gradients(y), **given.statistics()}
            where = f"in {mode}, without {', '.join(missing)}"
            seen |= {f"{name} {where}": value for name, value in observed.items()}
    return seen


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
