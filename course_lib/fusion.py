"""Batch Normalization folded into the layer before it, for inference: one pair, and every legal pair of a model.

In eval mode BatchNorm is y = scale · x + shift per channel, with scale = γ / √(running_var + eps) and
shift = β − running_mean · scale. A convolution or linear layer before it is linear in its weight and bias, so both can
take scale and shift over, and the normalisation disappears.
"""

import copy
import operator
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from course_lib.finetuning import FrozenBatchNorm
from course_lib.running_stats import has_own_forward, is_batchnorm
from course_lib.shapes import expect_number
from course_lib.tracing import difference, reproducible, trace_layers, twin

__all__ = [
    "CONVOLUTIONS",
    "TOLERANCE",
    "expect_plain",
    "expect_plain_batchnorm",
    "expect_unhooked",
    "fold_batchnorm",
    "fuse",
    "fuse_conv_bn",
    "fuse_linear_bn",
    "fusion_report",
    "is_foldable",
    "is_layer",
]

#: Convolutions that a BatchNorm can be folded into, ordinary and transposed.
#:
#: :meta hide-value:
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

#: Largest difference that counts as rounding, in units of the largest value, for float32 and float64.
TOLERANCE = 1e-5


# --- one pair -------------------------------------------------------------------------------------------------------


def is_foldable(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm of any kind, `FrozenBatchNorm` included.

    Example:
        >>> is_foldable(nn.BatchNorm2d(3)), is_foldable(FrozenBatchNorm(3)), is_foldable(nn.InstanceNorm2d(3))
        (True, True, False)
    """
    return is_batchnorm(module) or isinstance(module, FrozenBatchNorm)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of the layers that fusion is about: BatchNorm, convolution, linear layer.

    Example:
        >>> is_layer(nn.Linear(2, 3)), is_layer(nn.ReLU())
        (True, False)
    """
    return is_foldable(module) or isinstance(module, (nn.Linear, *CONVOLUTIONS))


def expect_unhooked(module: nn.Module) -> None:
    """Check that a module has no hooks: they would see another layer, or none at all, once it is fused.

    Raises:
        ValueError: no module; one with forward or backward hooks.

    Example:
        >>> expect_unhooked(nn.Linear(2, 3))
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise ValueError(f"expected a module, got {name}")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [kind.strip("_") for kind in hooks if getattr(module, kind)]
    if found:
        raise ValueError(f"expected a {name} without hooks, got one with {found[0]}: remove them first")


def expect_plain(layer: nn.Module, kinds: tuple[type, ...]) -> None:
    """Check that a layer does exactly what its class in torch.nn does with its weight and bias.

    Args:
        layer: any module.
        kinds: classes of torch.nn it may be of.

    Raises:
        ValueError: of another kind, or a subclass with a forward pass of its own; not initialised yet; with hooks or
            parametrizations: `weight_norm` and `spectral_norm` are one or the other, and compute the weight anew in
            each pass.

    Example:
        >>> expect_plain(nn.Linear(2, 3), (nn.Linear,))
    """
    name = type(layer).__name__
    kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if kind is None:
        raise ValueError(f"expected one of {', '.join(kind.__name__ for kind in kinds)}, got {name}")
    for method in ("forward", "_conv_forward"):
        if getattr(type(layer), method, None) is not getattr(kind, method, None):
            raise ValueError(f"expected a plain {kind.__name__}, got {name} with a {method} of its own")
    if is_lazy(layer.weight):
        raise ValueError(f"expected a {kind.__name__} with weights, got {name} before its first input: run it once")
    if is_parametrized(layer):
        raise ValueError(f"expected a plain {kind.__name__}, got one with parametrizations: remove them first")
    expect_unhooked(layer)


def expect_plain_batchnorm(bn: nn.Module) -> None:
    """Check that a BatchNorm layer does nothing but what BatchNorm does.

    Raises:
        ValueError: a subclass with a forward pass of its own; hooks, which would see another layer.

    Example:
        >>> expect_plain_batchnorm(nn.BatchNorm2d(3))
    """
    expect_unhooked(bn)
    if has_own_forward(bn):
        raise ValueError(f"expected a plain BatchNorm, got {type(bn).__name__} with a forward of its own")


def fold_batchnorm(
    weight: Tensor, bias: Tensor | None, bn: nn.Module, transposed: bool = False, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that does what a layer and the BatchNorm after it do together.

    BatchNorm counts as what it is in eval mode: per output channel, γ · (x − running_mean) / √(running_var + eps) + β,
    γ = 1 and β = 0 where the layer has none. Computed in float64, then rounded once to the given dtypes.
    Differentiable.

    Args:
        weight: (C, ...) of a linear layer or convolution, (C_in, C / groups, *kernel) of a transposed one.
        bias: (C,), or None.
        bn: a BatchNorm with running statistics, of C channels.
        transposed: the weight is a transposed convolution's.
        groups: of the convolution.

    Returns:
        (weight, bias): of weight's shape and dtype; of shape (C,) and bias's dtype, or weight's if there is no bias.

    Raises:
        ValueError: no running statistics; another number of channels; groups that do not divide the weight's first
            axis; bn on another device than the weight; bn no BatchNorm.

    Example:
        >>> bn = nn.BatchNorm1d(1, eps=0.0).eval()
        >>> _ = bn.running_mean.fill_(1.0), bn.running_var.fill_(4.0)
        >>> fold_batchnorm(torch.tensor([[6.0]]), None, bn)
        (tensor([[3.]], grad_fn=<ToCopyBackward0>), tensor([-0.5000], grad_fn=<ToCopyBackward0>))

    Source: [jacob2018], section 3.2, equation 14.
    """
    if not is_foldable(bn):
        raise ValueError(f"expected a BatchNorm layer, got {type(bn).__name__}")
    if bn.running_mean is None:
        raise ValueError(f"expected a BatchNorm with running statistics, got a {type(bn).__name__} without any")
    expect_number(groups, name="groups", low=1, whole=True)
    if len(weight) % groups:
        raise ValueError(f"expected groups to divide the first axis of weight, {len(weight)}, got groups={groups}")
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if bn.running_mean.shape != (channels,):
        raise ValueError(f"expected a BatchNorm of {channels} channels, got {bn.running_mean.numel()}")
    if bn.running_mean.device != weight.device:
        raise ValueError(
            f"expected the BatchNorm on the device of the weight, {weight.device}, got {bn.running_mean.device}"
        )
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    kernel = (1,) * (weight.dim() - 2)
    if transposed:
        # Input channels come first, group by group; row i of group g feeds the output channels of g alone.
        rows = scale.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
        wide = rows.reshape(len(weight), weight.shape[1], *kernel)
    else:
        wide = scale.view(-1, 1, *kernel)
    return (weight.double() * wide).to(weight.dtype), shift.to(weight.dtype if bias is None else bias.dtype)


def fuse_conv_bn(conv: nn.Module, bn: nn.Module) -> nn.Module:
    """One convolution that does what `conv` and then `bn` do in eval mode.

    Stride, padding, padding_mode, dilation, groups, output_padding, device, dtype, memory format and what of the
    weight is trainable are conv's; a bias is added where there was none.

    Args:
        conv: Conv1d, 2d, 3d or ConvTranspose1d, 2d, 3d. Not changed.
        bn: a BatchNorm in eval mode with running statistics, of conv's output channels. Not changed.

    Returns:
        A new module of conv's class.

    Raises:
        ValueError: bn in training mode, where it uses the batch's statistics; what `fold_batchnorm` refuses; conv of
            another kind, with hooks or parametrizations, or not initialised; bn with hooks, or a subclass of BatchNorm
            with a forward pass of its own.

    Example:
        >>> conv, bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
        >>> x = torch.ones(1, 3, 5, 5)
        >>> torch.allclose(fuse_conv_bn(conv, bn)(x), bn(conv(x)), atol=1e-5)
        True

    Source: [jacob2018], section 3.2.
    """
    expect_plain(conv, CONVOLUTIONS)
    expect_plain_batchnorm(bn)
    if bn.training:
        raise ValueError("expected a BatchNorm in eval mode, got one in training mode: call .eval() first")
    with torch.no_grad():
        weight, bias = fold_batchnorm(conv.weight, conv.bias, bn, conv.transposed, conv.groups)
    fused = copy.deepcopy(conv)
    fused.weight = nn.Parameter(weight, conv.weight.requires_grad)
    fused.bias = nn.Parameter(bias, (conv.weight if conv.bias is None else conv.bias).requires_grad)
    return fused


def fuse_linear_bn(linear: nn.Module, bn: nn.Module) -> nn.Module:
    """One linear layer that does what `linear` and then `bn` do in eval mode, on input of shape (N, features).

    Only there: on (N, L, features) the linear layer's channels are on the last axis, BatchNorm's on axis 1.

    Args:
        linear: nn.Linear. Not changed.
        bn: a BatchNorm in eval mode with running statistics, of linear's output features. Not changed.

    Returns:
        A new nn.Linear, on linear's device and in its dtype.

    Raises:
        ValueError: as `fuse_conv_bn`.

    Example:
        >>> linear, bn = nn.Linear(3, 8), nn.BatchNorm1d(8).eval()
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(fuse_linear_bn(linear, bn)(x), bn(linear(x)), atol=1e-5)
        True

    Source: [jacob2018], section 3.2.
    """
    expect_plain(linear, (nn.Linear,))
    expect_plain_batchnorm(bn)
    if bn.training:
        raise ValueError("expected a BatchNorm in eval mode, got one in training mode: call .eval() first")
    with torch.no_grad():
        weight, bias = fold_batchnorm(linear.weight, linear.bias, bn)
    fused = copy.deepcopy(linear)
    fused.weight = nn.Parameter(weight, linear.weight.requires_grad)
    fused.bias = nn.Parameter(bias, (linear.weight if linear.bias is None else linear.bias).requires_grad)
    return fused


# --- a whole model --------------------------------------------------------------------------------------------------


def fusion_report(model: nn.Module, example: Tensor | tuple) -> list[tuple[str, str]]:
    """What `fuse` does with each BatchNorm layer of a model, and why it leaves some alone.

    A layer is fused if it directly follows a convolution, or a linear layer with 2-D output, that is called once and
    feeds nothing else, if `fuse_conv_bn` or `fuse_linear_bn` takes the pair, and if the fused layer gives on the
    example what the two gave, to 1e-5.

    Args:
        model: not changed, nor are torch's random numbers; its layers' own modes count.
        example: a tensor or a tuple of arguments, on the model's device.

    Returns:
        A row (name, "fused" or the reason) per BatchNorm layer, `FrozenBatchNorm` included: those that are called in
        the order of their first call, then the others.

    Raises:
        ValueError: the model cannot be traced, or a lazy layer in it has seen no batch.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
        >>> fusion_report(model, torch.zeros(1, 1, 5, 5))
        [('1', 'fused'), ('3', "follows '2' (ReLU), no convolution or linear layer")]
    """
    args = example if isinstance(example, tuple) else (example,)
    net = trace_layers(model, args, is_layer)
    calls = Counter(node.target for node in net.graph.nodes if node.op == "call_module")
    # Tensors that the forward pass reaches into layers for: changing such a layer would change more than its output.
    read = {id(operator.attrgetter(node.target)(net)) for node in net.graph.nodes if node.op == "get_attr"}
    run = fx.Interpreter(net, garbage_collect_values=False)

    def verdict(node):
        bn = net.get_submodule(node.target)
        if calls[node.target] > 1:
            return f"is called {calls[node.target]} times"
        if len(node.all_input_nodes) != 1:
            return f"takes {len(node.all_input_nodes)} tensors"
        [source] = node.all_input_nodes
        layer = net.get_submodule(source.target) if source.op == "call_module" else None
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            said = source.name if layer is None else f"{source.target!r} ({type(layer).__name__})"
            return f"follows {said}, no convolution or linear layer"
        if calls[source.target] > 1:
            return f"{source.target!r} before it is called {calls[source.target]} times"
        if len(source.users) > 1:
            others = ", ".join(user.name for user in source.users if user is not node)
            return f"the output of {source.target!r} is used elsewhere too: {others}"
        if any(id(tensor) in read for tensor in [*layer.parameters(), *layer.buffers()]):
            return f"the weight or bias of {source.target!r} is used outside the layer too"
        rank = 2 if isinstance(layer, nn.Linear) else layer.weight.dim()
        if run.env[source].dim() != rank:
            return f"the output of {source.target!r} is {run.env[source].dim()}-D, its channels are not on axis 1"
        try:
            fused = fuse_linear_bn(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn(layer, bn)
        except ValueError as error:
            return str(error)
        args, kwargs = fx.node.map_arg((source.args, source.kwargs), run.env.__getitem__)
        gap = difference(fused(*args, **kwargs), bn(layer(*args, **kwargs)))
        return "fused" if gap <= TOLERANCE else f"differs by {gap:.1e} from {source.target!r} fused with it"

    rows = {}
    with reproducible():
        run.run(*args)
        for node in net.graph.nodes:
            if node.op == "call_module" and is_foldable(net.get_submodule(node.target)):
                rows[node.target] = verdict(node)
    for name, module in model.named_modules():
        if is_foldable(module):
            rows.setdefault(name, "is not called")
    return list(rows.items())


def fuse(model: nn.Module, example: Tensor | tuple) -> nn.Module:
    """A model for inference that has every BatchNorm layer folded away that legally can be.

    `fusion_report` says which, and why not the others. The result is the graph of one forward pass: it has the modes
    of now, and the control flow that the example took.

    Args:
        model: not changed; call `.eval()` first, a BatchNorm in training mode is left alone.
        example: a tensor or a tuple of arguments, on the model's device; random numbers will do. It says how many axes
            tensors have, and the result is compared with the model on it.

    Returns:
        A new module, a `torch.fx.GraphModule`, whose layers keep their names. It can be copied, pickled, exported.

    Raises:
        ValueError: the model cannot be traced; a lazy layer in it has seen no batch; or the result differs from it on
            the example by more than 1e-5 of the largest output, in half precision by more than some roundings.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> list(fuse(model, torch.zeros(1, 1, 5, 5)).children())
        [Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1)), ReLU()]

    Source: [jacob2018], section 3.2; the graph: [reed2022].
    """
    args = example if isinstance(example, tuple) else (example,)
    rows = dict(fusion_report(model, example))
    fused = trace_layers(model, args, is_layer)
    for node in list(fused.graph.nodes):
        if node.op == "call_module" and rows.get(node.target) == "fused":
            [source] = node.all_input_nodes
            layer, bn = fused.get_submodule(source.target), fused.get_submodule(node.target)
            both = fuse_linear_bn(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn(layer, bn)
            fused.set_submodule(source.target, both)
            node.replace_all_uses_with(source)
            fused.graph.erase_node(node)
    fused.delete_all_unused_submodules()
    fused.graph.lint()
    fused.recompile()
    with reproducible():
        want = twin(model)(*args)
    with reproducible():
        got = twin(fused)(*args)
    if difference(got, want) > TOLERANCE:
        raise ValueError(
            f"expected the fused model to equal the original on the example to {TOLERANCE}, got a difference of "
            f"{difference(got, want):.1e}: its forward pass does something that torch.fx does not record"
        )
    return fused
