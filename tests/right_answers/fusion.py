"""Right answers to problem set 6, each in another style. `RIGHT[piece][style]` is an implementation.

Not one of them is the reference's: some fold by algebra, some by asking the layers what they do, some work on a graph
and some on hooks.
"""

import contextlib
import copy
import operator
from collections import Counter, defaultdict

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

RIGHT = defaultdict(dict)

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORM = nn.modules.batchnorm._BatchNorm


def right(piece):
    """Decorator that files an implementation under its piece, by its own name."""

    def add(implementation):
        RIGHT[f"fusion.{piece}"][implementation.__name__] = implementation
        return implementation

    return add


def _refuse(bn, channels):
    if bn.training:
        raise ValueError("in training mode")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("no running statistics")
    if bn.num_features != channels:
        raise ValueError(f"{bn.num_features} channels after {channels}")


# --- fold_batchnorm ---------------------------------------------------------------------------------------------


@right("fold_batchnorm")
def textbook(weight, bias, bn, transposed=False, groups=1):
    mean, var = bn.running_mean.double(), bn.running_var.double()
    gamma = torch.ones_like(mean) if bn.weight is None else bn.weight.double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.double()
    old = torch.zeros_like(mean) if bias is None else bias.double()
    factor = gamma / torch.sqrt(var + bn.eps)
    new_bias = (old - mean) * factor + beta
    w = weight.double()
    if transposed:
        per_group = factor.reshape(groups, 1, weight.shape[1])
        w = w.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1) * per_group.unsqueeze(-1)
        w = w.reshape(weight.shape)
    else:
        w = w * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return w.to(weight.dtype), new_bias.to(weight.dtype if bias is None else bias.dtype)


@right("fold_batchnorm")
def one_channel_after_the_other(weight, bias, bn, transposed=False, groups=1):
    new_weight = weight.detach().clone()
    new_bias = torch.zeros(len(bn.running_mean), dtype=(weight if bias is None else bias).dtype, device=weight.device)
    per_group = weight.shape[1]
    rows = weight.shape[0] // groups
    for c in range(len(bn.running_mean)):
        s = 1.0 / (float(bn.running_var[c]) + bn.eps) ** 0.5
        if bn.weight is not None:
            s *= float(bn.weight[c])
        b = 0.0 if bias is None else float(bias[c])
        new_bias[c] = (b - float(bn.running_mean[c])) * s + (0.0 if bn.bias is None else float(bn.bias[c]))
        if transposed:
            g, j = divmod(c, per_group)
            place = (slice(g * rows, (g + 1) * rows), j)
        else:
            place = c
        new_weight[place] = (weight[place].double() * s).to(weight.dtype)
    return new_weight, new_bias


@right("fold_batchnorm")
def asks_the_layer(weight, bias, bn, transposed=False, groups=1):
    # A straight line is known by two of its points, and the layer itself says where they are.
    with torch.no_grad():
        wide = [None if t is None else t.double() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)]
        zero = torch.zeros(1, len(wide[0]), dtype=torch.float64, device=weight.device)

        def line(points):
            return batch_norm(points, *wide, False, 0.0, bn.eps)[0]

        slope = line(zero + 1) - line(zero)
        if bias is not None:
            zero = zero + bias.double()
        shift = line(zero).to(weight if bias is None else bias)
        if not transposed:
            return torch.einsum("o...,o->o...", weight.double(), slope).to(weight), shift
        parts = [
            torch.einsum("io...,o->io...", part.double(), s)
            for part, s in zip(weight.chunk(groups), slope.chunk(groups), strict=True)
        ]
        return torch.cat(parts).to(weight), shift


@right("fold_batchnorm")
def in_numpy(weight, bias, bn, transposed=False, groups=1):
    def wide(tensor, default):
        return default if tensor is None else tensor.detach().double().cpu().numpy()

    w, mean = wide(weight, None), wide(bn.running_mean, None)
    scale = wide(bn.weight, 1.0) / (wide(bn.running_var, None) + bn.eps) ** 0.5
    shift = wide(bn.bias, 0.0) + scale * (wide(bias, 0.0) - mean)
    if transposed:
        factors = scale.reshape(groups, -1).repeat(len(w) // groups, axis=0)
        w = w * factors.reshape(*factors.shape, *(1,) * (w.ndim - 2))
    else:
        w = (w.T * scale).T
    dtypes = weight.dtype, getattr(bias, "dtype", weight.dtype)
    return torch.from_numpy(w).to(dtypes[0]), torch.from_numpy(shift).to(dtypes[1])


@right("fold_batchnorm")
def as_matrices(weight, bias, bn, transposed=False, groups=1):
    scale = (bn.running_var.to(torch.float64) + bn.eps) ** -0.5
    scale = scale if bn.weight is None else bn.weight.to(torch.float64) * scale
    offset = -bn.running_mean.to(torch.float64)
    offset = offset if bias is None else offset + bias.to(torch.float64)
    offset = torch.mv(torch.diag(scale), offset)
    offset = offset if bn.bias is None else offset + bn.bias.to(torch.float64)
    if transposed:
        # Output channels to the front, fold as ever, and back.
        c_in, per_group = weight.shape[:2]
        w = weight.double().reshape(groups, c_in // groups, per_group, -1).transpose(1, 2)
        w = w.reshape(groups * per_group, -1)
        w = torch.diag(scale) @ w
        w = w.reshape(groups, per_group, c_in // groups, -1).transpose(1, 2).reshape(weight.shape)
    else:
        w = (torch.diag(scale) @ weight.double().flatten(1)).view_as(weight)
    return w.type(weight.dtype), offset.type_as(weight if bias is None else bias)


# --- fuse_conv_bn and fuse_linear_bn ----------------------------------------------------------------------------


def _outputs(layer):
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _fold_into(layer, bn, fold):
    transposed, groups = isinstance(layer, _TRANSPOSED), getattr(layer, "groups", 1)
    with torch.no_grad():
        return fold(layer.weight, layer.bias, bn, transposed=transposed, groups=groups)


@right("fuse_conv_bn")
@right("fuse_linear_bn")
def copied_and_filled(layer, bn):
    _refuse(bn, _outputs(layer))
    new = copy.deepcopy(layer)
    weight, bias = _fold_into(layer, bn, textbook)
    new.weight.data = weight
    new.bias = nn.Parameter(bias)
    return new


@right("fuse_conv_bn")
def built_anew(conv, bn):
    _refuse(bn, conv.out_channels)
    extra = {"output_padding": conv.output_padding} if isinstance(conv, _TRANSPOSED) else {}
    new = type(conv)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=True,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **extra,
    )
    weight, bias = _fold_into(conv, bn, textbook)
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new.train(conv.training)


@right("fuse_linear_bn")
def built_anew(linear, bn):  # noqa: F811
    _refuse(bn, linear.out_features)
    weight, bias = _fold_into(linear, bn, textbook)
    new = nn.Linear(*linear.weight.shape[::-1], device=weight.device, dtype=weight.dtype)
    new.load_state_dict({"weight": weight, "bias": bias})
    return new


@right("fuse_conv_bn")
@right("fuse_linear_bn")
def assigned_from_a_state_dict(layer, bn):
    _refuse(bn, _outputs(layer))
    weight, bias = _fold_into(layer, bn, asks_the_layer)
    new = copy.deepcopy(layer)
    if new.bias is None:
        new.bias = nn.Parameter(torch.empty_like(bias))
    new.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return new.requires_grad_(False)


@right("fuse_conv_bn")
@right("fuse_linear_bn")
def in_double_and_back(layer, bn):
    # The whole computation on float64 copies of both layers; Module.to does the rounding.
    _refuse(bn, _outputs(layer))
    dtype, new, norm = layer.weight.dtype, copy.deepcopy(layer).double(), copy.deepcopy(bn).double()
    for parameter in [*new.parameters(), *norm.parameters()]:
        parameter.requires_grad_(False)
    if new.bias is None:
        new.register_parameter("bias", nn.Parameter(torch.zeros_like(norm.running_mean), False))
    std = (norm.running_var + norm.eps).sqrt()
    gamma = 1 / std if norm.weight is None else norm.weight / std
    new.bias.sub_(norm.running_mean).mul_(gamma).add_(0 if norm.bias is None else norm.bias)
    if isinstance(new, _TRANSPOSED):
        for kernel, part in zip(new.weight.chunk(new.groups), gamma.chunk(new.groups), strict=True):
            kernel.mul_(part.view(1, -1, *(1,) * (kernel.dim() - 2)))
    else:
        new.weight.mul_(gamma.view(-1, *(1,) * (new.weight.dim() - 1)))
    return new.to(dtype)


@right("fuse_conv_bn")
@right("fuse_linear_bn")
def own_checks_by_a_decorator(layer, bn):
    for wrong, said in (
        (lambda: bn.training, "call eval first"),
        (lambda: not bn.track_running_stats, "track_running_stats is off"),
        (lambda: tuple(bn.running_mean.shape) != (_outputs(layer),), "channels do not match"),
    ):
        if wrong():
            raise ValueError(said)
    new = copy.copy(layer)
    # A shallow copy shares the dicts of the old layer: they are replaced before anything is put in.
    new._parameters = dict(layer._parameters)
    fold = as_matrices if not layer.weight.is_meta else textbook
    for name, value in zip(("weight", "bias"), _fold_into(layer, bn, fold), strict=True):
        new._parameters[name] = nn.Parameter(value, requires_grad=False)
    return new


# --- fusion_report ----------------------------------------------------------------------------------------------


def _arguments(example):
    return example if isinstance(example, tuple) else (example,)


def _pair(layer, bn):
    return copied_and_filled(layer, bn)


def _shaped(model, example):
    """A symbolic trace of a copy of the model whose nodes know their shapes."""
    traced = fx.symbolic_trace(copy.deepcopy(model))
    probe = copy.deepcopy(traced)
    with torch.no_grad(), torch.random.fork_rng():
        ShapeProp(probe).propagate(*_arguments(example))
    for mine, other in zip(traced.graph.nodes, probe.graph.nodes, strict=True):
        mine.meta = dict(other.meta)
    return traced


def _why_not(node, modules, calls):
    """None, or why this call of a BatchNorm cannot be folded into the node before it."""
    bn = modules[node.target]
    if bn.training:
        return "training mode"
    if bn.running_mean is None:
        return "no running statistics"
    if calls[node.target] != 1:
        return "called several times"
    before = node.args[0] if node.args else node.kwargs["input"]
    if before.op != "call_module" or not isinstance(modules[before.target], (_CONV, nn.Linear)):
        return "does not follow a convolution or linear layer"
    if calls[before.target] != 1:
        return "the layer before it is called several times"
    if list(before.users) != [node]:
        return "somebody else needs what comes in"
    if isinstance(modules[before.target], nn.Linear) and len(before.meta["tensor_meta"].shape) != 2:
        return "channels last"
    if _outputs(modules[before.target]) != bn.num_features:
        return "other channels"
    return None


def _norm_calls(traced):
    modules = dict(traced.named_modules())
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    return modules, nodes, Counter(node.target for node in nodes)


@right("fusion_report")
def symbolic_trace_and_shapes(model, example):
    traced = _shaped(model, example)
    modules, nodes, calls = _norm_calls(traced)
    rows = {}
    for node in nodes:
        if isinstance(modules[node.target], _NORM):
            rows[node.target] = _why_not(node, modules, calls) or "fused"
    for name, module in model.named_modules():
        if isinstance(module, _NORM) and name not in rows:
            rows[name] = "never called"
    return list(rows.items())


def _recorded(model, example):
    """Hooks on every layer: the calls in order as (name, id of the input, id of the output, rank of the output)."""
    model = copy.deepcopy(model)
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    calls, alive, depth = [], [], [0]
    uses = Counter()

    def before(module, args, kwargs):
        depth[0] += 1

    def after(module, args, kwargs, output):
        given = args[0] if args else kwargs["input"]
        alive.extend([given, output])
        calls.append((names[id(module)], id(given), id(output), output.dim()))
        depth[0] -= 1

    class Uses(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if not depth[0]:  # between the layers, in the model's own forward pass
                _count(args, uses)
                _count(tuple((kwargs or {}).values()), uses)
            result = function(*args, **(kwargs or {}))
            alive.append(result)  # so that no id is used twice
            return result

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after, with_kwargs=True)
    with torch.no_grad(), torch.random.fork_rng(), Uses():
        result = model(*_arguments(example))
    _count(result, uses)
    for _, given, _, _ in calls:
        uses[given] += 1
    return calls, uses


def _count(value, uses):
    if isinstance(value, torch.Tensor):
        uses[id(value)] += 1
    elif isinstance(value, tuple | list):
        for part in value:
            _count(part, uses)


def _foldable_calls(model, example):
    """[(name of a BatchNorm, name of the layer before it, or a reason)] in call order, from a recorded pass."""
    calls, uses = _recorded(model, example)
    modules = dict(model.named_modules())
    times = Counter(name for name, *_ in calls)
    made = {output: (name, rank) for name, _, output, rank in calls}
    found = {}
    for name, given, _, _ in calls:
        bn = modules[name]
        if not isinstance(bn, _NORM):
            continue
        source, rank = made.get(given, (None, 0))
        layer = modules.get(source) if source is not None else None
        if not isinstance(layer, (_CONV, nn.Linear)):
            found[name] = None, "nothing to fold it into"
        elif times[name] > 1 or times[source] > 1:
            found[name] = None, "called more than once"
        elif uses[given] > 1:
            found[name] = None, "needed elsewhere"
        elif isinstance(layer, nn.Linear) and rank != 2:
            found[name] = None, "no table"
        else:
            try:
                _pair(layer, bn)
                found[name] = source, "fused"
            except ValueError as error:
                found[name] = None, str(error)
    return found


@right("fusion_report")
def hooks_and_a_recorded_pass(model, example):
    rows = [(name, reason) for name, (_, reason) in _foldable_calls(model, example).items()]
    known = dict(rows)
    rest = [name for name, module in model.named_modules() if isinstance(module, _NORM) and name not in known]
    return rows + [(name, "is not called") for name in rest]


def _tried(model, example):
    """Every BatchNorm with every layer: fold the pair in a copy and see whether the model still says the same."""
    args = _arguments(example)
    calls, _ = _recorded(model, example)
    modules = dict(model.named_modules())
    times = Counter(name for name, *_ in calls)
    layers = [name for name in times if isinstance(modules[name], (_CONV, nn.Linear)) and times[name] == 1]
    pairs = {}
    current, want = copy.deepcopy(model), _said(model, args)
    for name in (name for name in times if isinstance(modules[name], _NORM)):
        pairs[name] = None
        for layer in layers:
            if modules[name].training or times[name] > 1:
                break
            attempt = copy.deepcopy(current)
            with contextlib.suppress(ValueError, RuntimeError):
                attempt.set_submodule(layer, _pair(current.get_submodule(layer), current.get_submodule(name)))
                attempt.set_submodule(name, nn.Identity())
                got = _said(attempt, args)
                if got.shape == want.shape and torch.allclose(got, want, rtol=1e-5, atol=1e-5):
                    current, pairs[name] = attempt, layer
                    break
    return current, pairs


def _said(model, args):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return copy.deepcopy(model)(*args)


@right("fusion_report")
def by_trial(model, example):
    _, pairs = _tried(model, example)
    rows = [[name, "fused" if layer else "no layer can take it"] for name, layer in pairs.items()]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and name not in pairs:
            rows.append([name, "unused"])
    return rows


@right("fusion_report")
def an_interpreter_that_takes_notes(model, example):
    traced = fx.symbolic_trace(copy.deepcopy(model))
    modules, nodes, calls = _norm_calls(traced)
    ranks = {}

    class Notes(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            ranks[node.name] = result.dim() if isinstance(result, torch.Tensor) else 0
            return result

    with torch.no_grad(), torch.random.fork_rng():
        Notes(traced).run(*_arguments(example))
    verdicts = []
    for node in nodes:
        bn = modules[node.target]
        if not isinstance(bn, _NORM) or node.target in dict(verdicts):
            continue
        [before] = node.all_input_nodes
        layer = modules.get(before.target) if before.op == "call_module" else None
        conditions = {
            "it moves with every batch": not bn.training,
            "it keeps no statistics": bn.running_mean is not None,
            "it comes after something else": isinstance(layer, (_CONV, nn.Linear)),
            "it has several callers": calls[node.target] == 1,
            "its layer has several callers": calls[before.target] == 1,
            "its input has several readers": len(before.users) == 1,
            "its input is a sequence": ranks[before.name] == 2 or not isinstance(layer, nn.Linear),
        }
        verdicts.append((node.target, next((why for why, fine in conditions.items() if not fine), "fused")))
    seen = {name for name, _ in verdicts}
    for name, module in model.named_modules():
        if isinstance(module, _NORM) and name not in seen:
            verdicts.append((name, "not part of the forward pass"))
    return verdicts


# --- fuse -------------------------------------------------------------------------------------------------------


@right("fuse")
def nodes_erased(model, example):
    traced = _shaped(model, example)
    modules, nodes, calls = _norm_calls(traced)
    for node in nodes:
        if isinstance(modules[node.target], _NORM) and _why_not(node, modules, calls) is None:
            before = node.args[0]
            traced.set_submodule(before.target, _pair(modules[before.target], modules[node.target]))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


@right("fuse")
def identities_in_a_copy(model, example):
    new = copy.deepcopy(model)
    for name, (source, _) in _foldable_calls(model, example).items():
        if source is not None:
            new.set_submodule(source, _pair(new.get_submodule(source), new.get_submodule(name)))
            new.set_submodule(name, nn.Identity())
    return new


@right("fuse")
def greedy_by_trial(model, example):
    return _tried(model, example)[0]


class _Skips(fx.Transformer):
    """Writes a graph anew, without the calls that are passed through."""

    def __init__(self, traced, skipped):
        super().__init__(traced)
        self.skipped = skipped

    def call_module(self, target, args, kwargs):
        return args[0] if target in self.skipped else super().call_module(target, args, kwargs)


@right("fuse")
def a_transformed_graph(model, example):
    traced = _shaped(model, example)
    modules, nodes, calls = _norm_calls(traced)
    skipped = set()
    for node in nodes:
        if isinstance(modules[node.target], _NORM) and not _why_not(node, modules, calls):
            layer = node.args[0].target
            parent, _, leaf = layer.rpartition(".")
            setattr(
                operator.attrgetter(parent)(traced) if parent else traced,
                leaf,
                _pair(modules[layer], modules[node.target]),
            )
            skipped.add(node.target)
    return _Skips(traced, skipped).transform()
