"""Whether code would run on a GPU, found out without one.

PyTorch's `meta` device computes shapes, dtypes and devices and no numbers. That makes it a second device everywhere:
a tensor that was made on the CPU, or that stayed there when its module moved, meets one that lives elsewhere. `meta`
alone lets some of these meetings pass, `cpu.mul_(0.9).add_(meta)` for one; under `OneDevice` all are refused, as on a
GPU.
"""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["DONE", "OneDevice", "WrongDevice", "attempt", "gpus", "left_behind", "whereabouts"]

#: What `attempt` says about a function that returned.
DONE = "done"

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
#: Operations between devices that a GPU allows: copies, and positions given on the CPU.
_CROSSING = {*_COPIES, _aten.index.Tensor, _aten.index_put_.default}
_OF_A_MODULE = frozenset(vars(nn.Module()))


class WrongDevice(RuntimeError):
    """An operation met tensors of two devices, or took a tensor away from its device."""


class OneDevice(TorchDispatchMode):
    """Within this context, operations work on one device only, in forward and in backward.

    Numbers, tensors without an axis, may come from the CPU, as a GPU allows it. Reading a number out of a tensor is
    slow on a GPU but legal; where there are no numbers, on `meta`, every number is 1.

    Args:
        device: the device, a name or a `torch.device`. Its index does not matter.

    Raises:
        WrongDevice: from within the operation.

    Example:
        >>> with OneDevice("meta"):
        ...     torch.zeros(3).mul_(0.9).add_(torch.zeros(3, device="meta"))
        Traceback (most recent call last):
        ...
        course_lib.checks.devices.WrongDevice: mixes tensors on cpu and meta in add_
    """

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device).type

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is _aten._local_scalar_dense.default and tensors[0].is_meta:
            return torch.ones((), dtype=tensors[0].dtype).item()
        here = any(tensor.device.type == self.device for tensor in tensors)
        elsewhere = {t.device.type for t in tensors if t.device.type != self.device and t.dim() > 0}
        operation = func._schema.name.partition("::")[2]
        if here and elsewhere and func not in _CROSSING:
            raise WrongDevice(f"mixes tensors on {', '.join(elsewhere)} and {self.device} in {operation}")
        if func in _COPIES and here and self._target(func, tensors, kwargs) != self.device:
            raise WrongDevice(f"takes a tensor away from {self.device} in {operation}")
        return func(*args, **kwargs)

    def _target(self, func, tensors, kwargs):
        if func is _aten.copy_.default:
            return tensors[0].device.type
        return torch.device(kwargs.get("device") or tensors[0].device).type


def attempt(function, device="meta"):
    """(what happened, result) of `function()` under `OneDevice`.

    What happened is a short fact, the same for every way of making one mistake: `DONE`, "mixes devices", or the kind
    of exception. Details are printed, so that they reach the student as a note.

    Example:
        >>> attempt(lambda: torch.zeros(2, device="meta").sum() + 1)[0]
        'done'
    """
    try:
        with OneDevice(device):
            return DONE, function()
    except WrongDevice as error:
        print(f"on {device}: {error}")
        return "mixes devices", None
    except Exception as error:
        print(f"on {device}: {type(error).__name__}: {error}")
        return type(error).__name__, None


def whereabouts(tensor):
    """Device, dtype and shape of a tensor in words: what there is to see of one on `meta`.

    Example:
        >>> whereabouts(torch.zeros(4, 3, device="meta", dtype=torch.bfloat16))
        'meta bfloat16 (4, 3)'
    """
    if not isinstance(tensor, torch.Tensor):
        return f"no tensor but {type(tensor).__name__}"
    return f"{tensor.device.type} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def left_behind(module, device):
    """Names of a module's tensors that are not on `device`: parameters, buffers, and plain attributes.

    Numbers, tensors without an axis, may stay on the CPU if they are plain attributes.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer.scale = torch.ones(3)
        >>> left_behind(layer.to("meta"), "meta")
        'scale'
    """
    device = torch.device(device).type
    names = []
    for path, part in module.named_modules():
        registered = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
        plain = {name: value for name, value in vars(part).items() if name not in _OF_A_MODULE}
        for name, kept in {**plain, **registered}.items():
            tensors = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, torch.Tensor)]
            if any(t.device.type != device and (t.dim() > 0 or name in registered) for t in tensors):
                names.append(f"{path}.{name}" if path else name)
    return ", ".join(sorted(names))


def gpus():
    """The GPUs to check on as well: the current one if there is one."""
    return ["cuda"] if torch.cuda.is_available() else []
