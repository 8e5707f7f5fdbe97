"""Problem set 2: the layer, `course_lib.running_stats.BatchNorm`, and what is looked at in one.

Groups are kept apart: a group observes what it is about in a way that other groups' mistakes leave alone. A momentum of
0.5 is the same in both conventions; the mean of a channel's output is its bias whatever the variance was; an output
brought back to mean 0 and spread 1 says only which values were normalised together, and a gradient of spread 1 only
which way it points.
"""

import torch

from course_lib.checks.piece import Piece, WrongReturn
from course_lib.checks.running_stats_inputs import flagged, kind, shares

__all__ = [
    "FROM_Y",
    "KEPT",
    "LEARNED",
    "MODES",
    "REMEMBERED",
    "aliased",
    "drawn_layer",
    "eval_far_from_eps",
    "filled",
    "layer",
    "mean_of",
    "normalised",
    "of_spread_1",
    "own_names",
    "replaced",
    "spread_of",
    "standardised",
    "state_of",
]

# Observations that are made of an output in float64, with the output's own rounding in them.
FROM_Y = {
    "y, brought to spread 1": 1e-3,
    "gradient of x, of spread 1": 3e-3,
    "spreads of y, as shares of their sum": 1e-3,
    "mean of y": 1e-3,
    "y, less that of a table of them": 1e-3,
    "running_var, less that of a table of them": 1e-3,
}

layer = Piece(
    "running_stats.BatchNorm",
    call="BatchNorm(num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, "
    "dtype=None)",
)
LEARNED, REMEMBERED = ("weight", "bias"), ("running_mean", "running_var")
KEPT = (*REMEMBERED, "num_batches_tracked")
MODES = {"training": True, "eval": False}


def drawn_layer(impl, case, *arguments, names=LEARNED + REMEMBERED, **options):
    """A layer with drawn parameters and running statistics."""
    made = impl(*arguments, **options).to(case.as_torch("float32"))
    return filled(made, case, arguments[0] if arguments else options["num_features"], names)


def filled(made, case, c, names=LEARNED + REMEMBERED):
    drawn = {
        "weight": case.uniform(0.5, 2, c),
        "bias": case.uniform(-2, 2, c),
        "running_mean": case.uniform(-2, 2, c),
        "running_var": case.uniform(0.5, 3, c),
    }
    with torch.no_grad():
        for name in names:
            held = getattr(made, name, None)
            if not isinstance(held, torch.Tensor):
                raise WrongReturn(f"expected the layer to have {name}, a tensor of shape ({c},), got {kind(held)}")
            held.copy_(case.given_tensor(drawn[name], name, dtype="float32", watch=False))
    return made


def state_of(made, names=REMEMBERED):
    """Running statistics, or whatever stands in their place."""
    return {name: getattr(made, name, None) for name in names}


def aliased(made, names=KEPT):
    """{name: (what the layer holds, a tensor in the same memory)}: what others hold, a state dict for one."""
    held = state_of(made, names)
    return {name: (v, v.detach() if isinstance(v, torch.Tensor) else None) for name, v in held.items()}


def replaced(made, before):
    """Names of what the layer no longer holds of what was `aliased`: it is another tensor now, or in other memory."""
    now = aliased(made, before)
    moved = {
        name: now[name][0] is not v or (alias is not None and now[name][1].data_ptr() != alias.data_ptr())
        for name, (v, alias) in before.items()
    }
    return flagged(**moved)


def axes_of(y):
    return (0, *range(2, y.dim()))


def mean_of(y):
    """Mean of every channel of an output: its bias, whatever the variance was."""
    return y.detach().double().mean(axes_of(y))


def along(vector, y):
    return vector.view(1, -1, *(1,) * (y.dim() - 2))


def spread_of(y):
    return (y.detach().double() - along(mean_of(y), y)).square().mean(axes_of(y)).sqrt()


def standardised(y):
    """Every channel of an output brought to mean 0 and spread 1: what was normalised together, and nothing else."""
    return of_spread_1(y.detach().double() - along(mean_of(y), y))


def of_spread_1(gradient):
    """Every channel of a gradient brought to spread 1. Its mean stays: 0, if it came back through the statistics."""
    return gradient.double() / along(spread_of(gradient), gradient)


def normalised(made, x, dy):
    """Output and gradient of x in training, in the parts that do not depend on which variance was taken."""
    x = x.requires_grad_()
    y = made(x)
    y.backward(dy.to(y.dtype))
    return {
        "y, brought to spread 1": standardised(y),
        "spreads of y, as shares of their sum": shares(spread_of(y)),
        "mean of y": mean_of(y),
        "gradient of x, of spread 1": of_spread_1(x.grad),
    }


def eval_far_from_eps(made, x):
    """Output in eval, with variances so large that no default of eps shows. The layer is as before, and trains."""
    before = made.running_var.clone()
    with torch.no_grad():
        made.running_var.mul_(100)
        y = made.eval()(x)
        made.running_var.copy_(before)
    made.train()
    return y


def own_names(made):
    """Names of what a layer has registered and holds."""
    parameters = ", ".join(sorted(name for name, _ in made.named_parameters()))
    return {"parameters": parameters, "buffers": ", ".join(sorted(name for name, _ in made.named_buffers()))}
