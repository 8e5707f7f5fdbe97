"""Layers to fold, drawn, and what came of them: shared by the pieces of problem set 6.

Every eps is drawn and large, every BatchNorm keeps its own, and no two sizes of a layer are equal unless the scenario
is about that: a factor on the wrong axis cannot come out with the right shape by chance.
"""

import torch
from torch import nn

from course_lib.checks.piece import WrongReturn

__all__ = ["HALVES", "both_signs", "differing_sizes", "expect_module", "norm", "run", "watch"]

#: Names of the short dtypes. Each is asked about for every seed: they do not have the same operations.
HALVES = ("float16", "bfloat16")


def norm(case, channels, rank, *, dtype=None, **options):
    """A BatchNorm in eval mode with drawn statistics, for `rank` spatial axes."""
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank]
    bn = kind(channels, eps=case.number("eps", 0.2, 0.9), **options)
    return both_signs(case.fill(bn, dtype=dtype)).eval()


def both_signs(bn):
    """The BatchNorm with every other γ, the first one's too, turned negative: training leaves some of them so."""
    if bn.weight is not None:
        with torch.no_grad():
            bn.weight[::2].neg_()
    return bn


def differing_sizes(case, *low):
    """Different sizes, each a little above its lower limit."""
    sizes = []
    for least in low:
        size = least + case.integer(0, 2)
        while size in sizes:
            size += 1
        sizes.append(size)
    return sizes


def watch(**modules):
    """What the modules look like now; called later, the result names what has changed."""
    before = {name: _state(module) for name, module in modules.items()}

    def changed():
        now = {name: _state(module) for name, module in modules.items()}
        return [key for name in modules for key in _differing(name, before[name], now[name])]

    return changed


def _state(module):
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    modes = {f"mode of {name or 'it'}": part.training for name, part in module.named_modules()}
    for name, part in module.named_modules():
        modes[f"hooks of {name or 'it'}"] = len(part._forward_hooks) + len(part._forward_pre_hooks)
    for name, parameter in module.named_parameters():
        modes[f"requires_grad of {name}"], modes[f"gradient of {name}"] = parameter.requires_grad, parameter.grad
    return {**tensors, **modes, "its layers": repr(module)}


def _differing(title, before, now):
    for key in [*before, *(key for key in now if key not in before)]:
        then, there = before.get(key), now.get(key)
        if isinstance(then, torch.Tensor) and isinstance(there, torch.Tensor):
            same = then.shape == there.shape and then.dtype == there.dtype and torch.equal(then, there)
        else:
            same = type(then) is type(there) and then == there
        if not same:
            yield f"{title}: {key}"


def expect_module(result):
    """`result` where it is a module.

    Raises:
        WrongReturn: it is something else.
    """
    if not isinstance(result, nn.Module):
        raise WrongReturn(f"expected a module to be returned, got {type(result).__name__}")
    return result


def run(module, *args):
    """What a module computes, without a graph."""
    with torch.no_grad():
        return module(*args)
