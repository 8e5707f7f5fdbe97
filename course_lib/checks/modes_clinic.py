"""Problem set 3, the clinic: what is asked of the six patients."""

import numpy as np
import torch

from course_lib.checks.modes_inputs import (
    Curve,
    in_training,
    maps,
    mixed_model,
    other_ranks,
    per_channel,
    state,
    table,
    trainable,
)
from course_lib.checks.piece import Piece, WrongReturn

# One group each: the code as it is handed out scores nothing.

no_eval = Piece("modes.clinic_no_eval", call="clinic_no_eval(model, x, labels) → float")
company = no_eval.group("the same prediction in any company, and no trace", points=0.5)


def _accuracy(impl, case, *, outer):
    classes, n = case.integer(3, 5), case.integer(7, 9)
    model = mixed_model(case, classes, outer=outer, frozen=True)
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
    return {
        **seen,
        "in training afterwards": in_training(model),
        "parameters that need gradients afterwards": trainable(model),
        "gradients are recorded afterwards": torch.is_grad_enabled(),
        "inputs changed": case.changed(),
        **state(model[0][0]),
    }


_ACCURACIES = {"accuracy": 1e-6, "accuracy of some": 1e-6}


def _fraction(value):
    """A number, of whatever type: the last digits of float32 are enough."""
    if isinstance(value, bool) or not isinstance(value, float | int | np.number | torch.Tensor | np.ndarray):
        raise WrongReturn(f"expected a float to be returned, got {type(value).__name__}: is there a return?")
    return float(value)


@company.scenario(within=_ACCURACIES)
def accuracy_of_a_training_model(impl, case):
    return _accuracy(impl, case, outer=True)


@company.scenario(within=_ACCURACIES)
def accuracy_of_a_model_in_eval(impl, case):
    return _accuracy(impl, case, outer=False)


@company.scenario(within=1e-6)
def accuracy_of_one_sample(impl, case):
    model = mixed_model(case, 3)
    x = case.draw((1, 3))
    x[0, 1] += 9
    x = case.given_tensor(x, "x")
    return {
        f"accuracy where the label is {label}": _fraction(impl(model, x, torch.tensor([label]))) for label in (1, 2)
    }


plain_buffers = Piece("modes.clinic_plain_buffers", call="clinic_plain_buffers(num_features, momentum=0.1)")
kept = plain_buffers.group("the running mean is state: saved, moved, updated in place", points=0.5)


@kept.scenario()
def centring_layer(impl, case):
    c, momentum = case.integer(2, 4), case.number("momentum", 0.2, 0.4)
    layer = impl(c, momentum=momentum).to(case.torch_dtype)
    # As others hold it: the tensor itself, and, in a state dict, one of its own in the same memory.
    before, held = layer.running_mean, layer.running_mean.detach()
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
        "it needs gradients": before.requires_grad,
        "keys of the state dict": ", ".join(layer.state_dict()),
        "parameters an optimiser sees": len(list(layer.parameters())),
    }
    layer.eval()
    # Where nothing is recorded, autograd does not mind if x is written over: the caller does.
    with torch.no_grad():
        layer(x.detach())
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
    running = per_channel(case, c, -2, 2, "running_mean", watch=False)
    slope = per_channel(case, 1, 0.5, 2, "slope").requires_grad_()
    x, momentum, recorded = case.given_tensor(values, "x"), case.number("momentum", 0.1, 0.4), True
    for _ in range(2):
        batch = slope * x
        kept = batch.detach().clone()
        impl(running, batch, momentum)
        recorded &= torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        batch.square().sum().backward()
    return {
        "it needs gradients": running.requires_grad,
        "running_mean": running,
        "gradient of the caller": slope.grad,
        "gradients are recorded afterwards": recorded,
        "inputs changed": "" if torch.equal(batch, kept) else "x",
    }


@record.scenario()
def running_mean_of_tables(impl, case):
    return _running_mean(impl, case, table(case))


@record.scenario()
def running_mean_of_maps(impl, case):
    return _running_mean(impl, case, maps(case))


@record.scenario()
def running_mean_of_other_ranks(impl, case):
    return {f"running_mean of {axes}": _running_mean(impl, case, x)["running_mean"] for axes, x in other_ranks(case)}


grad_mode = Piece("modes.clinic_grad_mode", call="clinic_grad_mode(model, x) → tensor")
sensitivity = grad_mode.group("the gradient of the model as it predicts, and no trace", points=0.5)


def _gradient_of_the_input(impl, case, model):
    layer = model[0][0]
    layer.weight.grad = per_channel(case, 3, 1, 2, "gradient of weight").clone()
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
        "parameters that need gradients afterwards": trainable(model),
        "in training afterwards": in_training(model),
        **state(layer),
        "inputs changed": case.changed(),
    }


@sensitivity.scenario()
def gradient_of_the_input(impl, case):
    model = mixed_model(case, 3, Curve())
    seen = _gradient_of_the_input(impl, case, model)
    return seen | {"bias has a gradient": model[0][0].bias.grad is not None}


@sensitivity.scenario()
def gradient_of_the_input_of_a_model_in_eval(impl, case):
    return _gradient_of_the_input(impl, case, mixed_model(case, 3, Curve(), outer=False, frozen=True))


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
    running = per_channel(case, values.shape[1], 0.5, 4, "running_var", watch=False)
    x = case.given_tensor(values, "x").requires_grad_()
    for momentum in (case.number("momentum", 0.1, 0.4), case.number("momentum", 0.6, 0.9)):
        impl(running, x, momentum)
    return {
        "it needs gradients": running.requires_grad,
        "running_var": running,
        "gradients are recorded afterwards": torch.is_grad_enabled(),
        "inputs changed": case.changed(),
    }


@remembered.scenario()
def running_var_of_table(impl, case):
    return _running_var(impl, case, table(case))


@remembered.scenario()
def running_var_of_maps(impl, case):
    return _running_var(impl, case, maps(case))


@remembered.scenario()
def running_var_of_other_ranks(impl, case):
    return {f"running_var of {axes}": _running_var(impl, case, x)["running_var"] for axes, x in other_ranks(case)}
