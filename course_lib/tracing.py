"""A model as a graph of its layers, and comparing two models: what working on whole models stands on."""

import contextlib
import copy
import os
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

__all__ = ["deepcopy_memo", "difference", "reproducible", "trace_layers", "twin"]

_TORCH = os.path.dirname(torch.__file__)


def deepcopy_memo(model: nn.Module) -> dict[int, Tensor]:
    """What `copy.deepcopy` has to be told to copy any model: copies of the tensors that it refuses.

    Those are tensors with a history, such as the weights that `torch.nn.utils.weight_norm` and `spectral_norm` compute.

    Args:
        model: any module.

    Returns:
        A dict from the id of each such tensor to its copy, without history.

    Raises:
        ValueError: a lazy layer that has seen no batch, of which there is nothing to copy.

    Example:
        >>> layer = nn.utils.spectral_norm(nn.Linear(2, 3))
        >>> _ = layer(torch.ones(1, 2))
        >>> torch.equal(copy.deepcopy(layer, deepcopy_memo(layer)).weight, layer.weight)
        True
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"expected a model that knows its shapes, got {name!r} without: run one batch first")
    held = [value for module in model.modules() for value in vars(module).values()]
    return {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and v.grad_fn is not None}


def twin(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that holds computed tensors, as `weight_norm` and `spectral_norm` leave them.

    Raises:
        ValueError: a lazy layer that has seen no batch.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> twin(model).weight is model.weight
        False
    """
    made = deepcopy_memo(model)
    held = [value for module in model.modules() for value in vars(module).values()]
    # Every module has ten tables of hooks, nearly always empty: copying those takes longer than copying the tensors.
    made |= {id(v): type(v)() for v in held if type(v) in (dict, OrderedDict) and not v}
    return copy.deepcopy(model, made)


def trace_layers(model: nn.Module, args: tuple, is_layer: Callable[[nn.Module], bool]) -> fx.GraphModule:
    """A copy of a model as a `torch.fx` graph, in which every layer is one node.

    The graph's names of layers are the model's own. It has the modes and the arguments that are no tensors of now.

    Args:
        model: not changed.
        args: positional arguments of an example; what the forward pass takes beyond them keeps its default.
        is_layer: which modules are not looked into; torch.nn's own, containers aside, never are.

    Returns:
        A GraphModule with copies of the model's layers.

    Raises:
        ValueError: the model cannot be traced, for example because an `if` looks at the values of a tensor: the
            message quotes the line; or it is a layer itself; or a lazy layer in it has seen no batch.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> traced = trace_layers(model, (torch.zeros(1, 1, 5, 5),), lambda module: False)
        >>> [node.target for node in traced.graph.nodes]
        ['input', '0', '1', 'output']

    Source: [reed2022] describes the tracer.
    """
    if is_layer(model):
        raise ValueError(f"expected a network of layers, got a {type(model).__name__} alone")
    model = twin(model)
    fixed = {}
    for i, parameter in enumerate(signature(model.forward).parameters.values()):
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            given = i < len(args) and parameter.kind is not parameter.KEYWORD_ONLY
            value = args[i] if given else parameter.default
            if value is not parameter.empty and not isinstance(value, Tensor | tuple | list | dict):
                fixed[parameter.name] = value

    class Tracer(fx.Tracer):  # local: fx makes one anew, without our arguments, when it unpickles a graph of any other
        def is_leaf_module(self, module, name):
            # On its own, fx looks into the layers of other packages than torch.nn.
            return is_layer(module) or super().is_leaf_module(module, name)

    tracer = Tracer()
    try:
        graph = tracer.trace(model, concrete_args=fixed or None)
    except Exception as error:  # whatever a forward pass does with what is not a tensor
        ours = [f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith(_TORCH)]
        where = f" at `{ours[-1].line}` ({ours[-1].name}, line {ours[-1].lineno})" if ours else ""
        raise ValueError(
            f"expected a model that torch.fx can trace, got {type(error).__name__}{where}: {error}. Move that out of "
            "the forward pass, into a module that is a layer, or treat the layers one by one"
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    for name, module in traced.named_modules():
        # fx registers the buffers that the graph reads itself, and all of them for the state dict.
        left_out = model.get_submodule(name)._non_persistent_buffers_set
        module._non_persistent_buffers_set |= left_out & module._buffers.keys()
    return traced


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """No gradients, and the same random numbers each time; afterwards the generators go on where they were.

    Example:
        >>> with reproducible():
        ...     first = torch.rand(2)
        >>> with reproducible():
        ...     print(torch.equal(first, torch.rand(2)))
        True
    """
    with torch.no_grad(), torch.random.fork_rng():
        # Without an accelerator, `torch.manual_seed` notes where it was called from, for a device that never starts:
        # more work than a small model's forward pass.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(0)
        yield


def difference(got: Any, want: Any) -> float:
    """Largest difference of two outputs, in units of the largest value in `want`, or of 1 if that is larger.

    Values that differ by less than 16 roundings of their dtype do not differ.

    Args:
        got, want: tensors, or tuples, lists and dicts of them, of one structure; what is no tensor is passed over.

    Returns:
        A float, infinite where shapes or dtypes differ; on the meta device only those are compared.

    Example:
        >>> difference(torch.tensor([1.0, 20.0]), torch.tensor([1.0, 10.0]))
        1.0
    """
    parts = [], []
    fx.node.map_aggregate(got, parts[0].append)
    fx.node.map_aggregate(want, parts[1].append)
    if len(parts[0]) != len(parts[1]):
        return float("inf")
    worst = 0.0
    for one, other in zip(*parts, strict=True):
        if not isinstance(other, Tensor):
            continue
        if not isinstance(one, Tensor) or (one.shape, one.dtype) != (other.shape, other.dtype):
            return float("inf")
        if other.numel() == 0 or other.is_meta:
            continue
        one, other = one.detach(), other.detach()
        gap = (one.double() - other.double()).abs()
        gap = gap.masked_fill((one == other) | (one.isnan() & other.isnan()), 0.0).nan_to_num(nan=float("inf"))
        largest = other.double().nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=1.0)
        relative = float(gap.max() / largest)
        if not (other.is_floating_point() and relative < 16 * torch.finfo(other.dtype).eps):
            worst = max(worst, relative)
    return worst
