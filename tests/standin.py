"""A device that is not the CPU, for machines without a GPU: memory of its own, real numbers, a GPU's objections.

A tensor on "standin" holds one on the CPU and lets it compute, so results are numbers, which `meta` has not. To
everybody else it lies elsewhere: beside tensors on the CPU it is refused as on a GPU, its values have to be copied
before NumPy sees them, and its backward passes run in a thread of their own. What it does not have are a GPU's
kernels, streams and libraries, and of autocast it knows two layers: it shows that code is written for any device, not
that it runs on CUDA.

Once registered with torch it stays for as long as the process lives. From then on a forked process can differentiate
nothing, as after CUDA was used: register it only where no test forks.
"""

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["NAME", "StandInTensor", "register"]

NAME = "standin"

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._copy_from.default}
#: Positions may be given on the CPU: only the tensor and the new values have to be in one place.
_INDEXING = {_aten.index.Tensor: (0,), _aten.index_put.default: (0, 2), _aten.index_put_.default: (0, 2)}


class StandInTensor(torch.Tensor):
    """A tensor whose values are in `held`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        facts = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=f"{NAME}:0", **facts)
        made.held = held
        return made

    def __tensor_flatten__(self):
        """With its partner this lets a module exchange its parameters as a whole in `.to` and `.double`."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, outer_size, outer_stride):
        return StandInTensor(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()

    def __repr__(self, *, tensor_contents=None):
        return f"{NAME}({self.held!r})"


def _held(leaf):
    if isinstance(leaf, StandInTensor):
        return leaf.held
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == NAME else leaf


def _run(func, args, kwargs):
    if func in _COPIES:
        source, target = args[:2] if func is _aten._copy_from.default else args[1::-1]
        _held(target).copy_(_held(source))
        return target
    if func is _aten._to_copy.default:
        device = torch.device(kwargs.get("device") or args[0].device)
        copy = func(_held(args[0]), **tree_map(_held, kwargs))
        return StandInTensor(copy) if device.type == NAME else copy
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} changes a tensor's shape in place, which {NAME} does not follow")
    _expect_one_device(func, args, kwargs)
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    ours = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, StandInTensor))
    given = {id(tensor.held): tensor for tensor in ours}  # what changed in place comes back as itself
    return tree_map(lambda leaf: _wrapped(leaf, given), result)


def _wrapped(leaf, given):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return given[id(leaf)] if id(leaf) in given else StandInTensor(leaf)


def _expect_one_device(func, args, kwargs):
    """Refuse what a GPU refuses; numbers, tensors without an axis, may come from the CPU."""
    asked = [args[i] for i in _INDEXING[func]] if func in _INDEXING else (args, kwargs)
    for leaf in tree_leaves(asked):
        if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.dim() > 0:
            raise RuntimeError(f"Expected all tensors to be on the same device, got cpu and {NAME} in {func}")
        if isinstance(leaf, torch.Generator):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {func}")


class _Module:
    """`torch.standin`: what torch asks of a device's module. Random numbers are the CPU's."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=NAME: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=NAME: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


def _made_here(operator):
    """A factory of torch's as this device has it."""

    def make(*args, **kwargs):
        return StandInTensor(operator(*args, **{**kwargs, "device": "cpu"}))

    return make


def _in_low_precision(operator):
    """An operator as autocast has it: its tensors are narrowed first."""
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args):
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operator(*(arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in args))

    return run


_kernels = []  # what was registered goes with its library


def register():
    """Make the device known to torch, once for a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    aten, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _kernels.extend([aten, others])
    for factory, operator in {
        "empty.memory_format": _aten.empty.memory_format,
        "empty_strided": _aten.empty_strided.default,
        # Zeros without memory, which kernels must not see.
        "_efficientzerotensor": _aten.zeros.default,
    }.items():
        aten.impl(factory, _made_here(operator), "PrivateUse1")
    aten.impl("_copy_from", lambda *args: _run(_aten._copy_from.default, args, {}), "PrivateUse1")
    # Of autocast, the layers that stand before a BatchNorm. The rest computes as it comes.
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for layer in ("conv2d", "linear"):
        aten.impl(layer, _in_low_precision(getattr(_aten, layer).default), "AutocastPrivateUse1")
