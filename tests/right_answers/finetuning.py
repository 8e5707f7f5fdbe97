"""Right answers to problem set 4, each in another style. `RIGHT[piece][style]` is an implementation.

Honest ways, not clever ones: the row of the contract is kept, the library's own manners beyond it are not.
"""

import contextlib
import copy
import inspect
import math
import types
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_lib import running_stats
from course_lib.finetuning import Always
from course_lib.running_stats import is_batchnorm

RIGHT = defaultdict(dict)


def right(piece):
    """Decorator that files an implementation under its piece, by its own name."""

    def add(implementation):
        RIGHT[f"finetuning.{piece}"][implementation.__name__] = implementation
        return implementation

    return add


# --- freeze_batchnorm and unfreeze_batchnorm --------------------------------------------------------------------


def _pair(style, freeze, unfreeze):
    RIGHT["finetuning.freeze_batchnorm"][style] = freeze
    RIGHT["finetuning.unfreeze_batchnorm"][style] = freeze, unfreeze


def _stay_in_eval(self, mode=True):
    self.training = False
    return self


def bound_method_freeze(model, affine=True):
    for m in model.modules():
        if not is_batchnorm(m):
            continue
        if "was" not in m.__dict__:
            m.was = [m.training] + [p.requires_grad for p in m.parameters()]
        m.train = types.MethodType(_stay_in_eval, m)
        m.eval()
        if affine:
            m.requires_grad_(False)
    return model


def bound_method_unfreeze(model):
    for m in model.modules():
        if "was" in m.__dict__:
            mode, *grads = m.was
            del m.was, m.train
            m.train(mode)
            for p, grad in zip(m.parameters(), grads, strict=True):
                p.requires_grad_(grad)
    return model


_pair("bound_method", bound_method_freeze, bound_method_unfreeze)


def with_always_freeze(model, affine=True):
    for _, layer in model.named_modules():
        if "BatchNorm" in type(layer).__name__:
            old = vars(layer).get("_before_freeze")
            if old is None:
                old = {"mode": layer.training, "weight": None, "bias": None}
                for which in ("weight", "bias"):
                    p = getattr(layer, which)
                    old[which] = None if p is None else p.requires_grad
                layer._before_freeze = old
            layer.train = Always(nn.Module.train, layer, False)
            layer.training = False
            if affine and layer.weight is not None:
                layer.weight.requires_grad_(False)
                layer.bias.requires_grad_(False)
    return model


def with_always_unfreeze(model):
    for _, layer in model.named_modules():
        old = vars(layer).pop("_before_freeze", None)
        if old is not None:
            vars(layer).pop("train")
            layer.train(old.pop("mode"))
            for which, grad in old.items():
                if grad is not None:
                    getattr(layer, which).requires_grad_(grad)
    return model


_pair("with_always", with_always_freeze, with_always_unfreeze)


_KINDS = (nn.modules.batchnorm._BatchNorm, running_stats.BatchNorm)


def _train_all_but_batchnorm(self, mode=True):
    type(self).train(self, mode)
    for m in self.modules():
        if isinstance(m, _KINDS):
            m.training = False
    return self


def override_of_the_model_freeze(model, affine=True):
    """The override of most recipes: `train` of the model, not of the layers."""
    if not hasattr(model, "bn_state"):
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _KINDS)]
        model.bn_state = {n: (m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for n, m in layers}
        model.train = types.MethodType(_train_all_but_batchnorm, model)
    for name in model.bn_state:
        layer = model.get_submodule(name)
        layer.training = False
        for p in layer.parameters():
            p.requires_grad = p.requires_grad and not affine
    return model


def override_of_the_model_unfreeze(model):
    if hasattr(model, "bn_state"):
        for name, (training, grads) in model.bn_state.items():
            layer = model.get_submodule(name)
            layer.training = training
            for p, grad in zip(layer.parameters(), grads, strict=True):
                p.requires_grad = grad
        del model.bn_state, model.train
    return model


_pair("override_of_the_model", override_of_the_model_freeze, override_of_the_model_unfreeze)


def does_nothing_freeze(model, affine=True):
    """In eval mode, with a `train` that does nothing."""
    for layer in [m for m in model.modules() if is_batchnorm(m)]:
        if not getattr(layer, "is_frozen", False):
            layer.is_frozen = True
            layer.saved = layer.training, {n: p.requires_grad for n, p in layer.named_parameters()}
        layer.training = False
        layer.train = types.MethodType(lambda self, mode=True: self, layer)
        for p in layer.parameters() if affine else []:
            p.requires_grad_(False)
    return model


def does_nothing_unfreeze(model):
    for layer in [m for m in model.modules() if getattr(m, "is_frozen", False)]:
        del layer.is_frozen
        del layer.train
        training, grads = layer.__dict__.pop("saved")
        layer.train(training)
        for n, p in layer.named_parameters():
            p.requires_grad_(grads[n])
    return model


_pair("does_nothing", does_nothing_freeze, does_nothing_unfreeze)


def _to_eval(module, args):
    module.training = False


def hook_freeze(model, affine=True):
    """Into eval mode whenever it is called: a hook that runs before each forward."""
    for m in filter(is_batchnorm, model.modules()):
        if not hasattr(m, "thaw"):
            m.thaw = (m.register_forward_pre_hook(_to_eval), m.training, [p.requires_grad for p in m.parameters()])
        m.training = False
        for p in m.parameters():
            p.requires_grad = p.requires_grad and not affine
    return model


def hook_unfreeze(model):
    for m in model.modules():
        if hasattr(m, "thaw"):
            hook, m.training, wanted = m.thaw
            hook.remove()
            del m.thaw
            for p, flag in zip(m.parameters(), wanted, strict=True):
                p.requires_grad = flag
    return model


_pair("hook", hook_freeze, hook_unfreeze)


# --- recalibrate ------------------------------------------------------------------------------------------------


def _refuse_iterators(batches):
    if inspect.isgenerator(batches) or iter(batches) is batches:
        raise ValueError("batches are read several times: give a list")


@right("recalibrate")
@torch.no_grad()
def hooks_and_cat(model, batches):
    _refuse_iterators(batches)
    bns = [m for m in model.modules() if is_batchnorm(m)]
    was = {m: m.training for m in model.modules()}
    model.eval()
    calls = []
    hooks = [bn.register_forward_hook(lambda m, i, o: calls.append(m)) for bn in bns]
    try:
        for batch in batches:
            model(batch)
            break
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(set(calls)):
        for m, mode in was.items():
            m.training = mode
        raise ValueError("a BatchNorm is called more than once")
    for bn in calls:
        seen = []
        hook = bn.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].transpose(0, 1).flatten(1)))
        for batch in batches:
            model(batch)
        hook.remove()
        x = torch.cat(seen, dim=1)
        bn.running_mean.copy_(x.mean(1))
        bn.running_var.copy_(x.var(1))
    for m, mode in was.items():
        m.training = mode
    return model


class _Stop(Exception):
    pass


class _Collector:
    """Sums of one layer's input around a pivot."""

    def __init__(self):
        self.n, self.pivot = 0, None

    def __call__(self, module, args):
        x = args[0].detach().double()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.pivot is None:
            self.pivot = x.mean(dims)
            self.s1, self.s2 = torch.zeros_like(self.pivot), torch.zeros_like(self.pivot)
        d = x - self.pivot.view(shape)
        self.s1 += d.sum(dims)
        self.s2 += (d * d).sum(dims)
        self.n += x.numel() // x.shape[1]

    def statistics(self):
        mean = self.s1 / self.n
        return self.pivot + mean, (self.s2 - self.n * mean**2) / (self.n - 1)


@contextlib.contextmanager
def _everything_in_eval(model):
    training = [m for m in model.modules() if m.training]
    for m in training:
        m.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for m in training:
            m.training = True


@right("recalibrate")
def pivoted_sums(model, batches):
    if hasattr(batches, "__next__"):
        raise ValueError("a generator is empty after the first pass")
    layers = [m for m in model.modules() if is_batchnorm(m)]
    done = []
    with _everything_in_eval(model):
        while len(done) < len(layers):
            called, collectors, handles = [], {}, []
            for layer in layers:
                collectors[layer] = _Collector()
                handles.append(layer.register_forward_pre_hook(collectors[layer]))
                handles.append(layer.register_forward_pre_hook(lambda m, a, called=called: called.append(m)))
            try:
                for batch in batches:
                    called.clear()
                    model(batch)
                    if len(set(called)) < len(called):
                        raise ValueError("one layer, two calls")
            finally:
                [h.remove() for h in handles]
            todo = [layer for layer in called if layer not in done]
            if not todo:
                break
            mean, var = collectors[todo[0]].statistics()
            todo[0].running_mean.copy_(mean)
            todo[0].running_var.copy_(var)
            done.append(todo[0])
    return model


@right("recalibrate")
def numpy_detour(model, batches):
    if iter(batches) is iter(batches):
        raise ValueError("not re-iterable")
    modes = {name: m.training for name, m in model.named_modules()}
    model.eval()
    position = {}
    inputs = defaultdict(list)

    def note(name):
        def hook(module, args):
            if name in position and len(inputs[name]) > len(inputs["batch"]):
                raise ValueError(f"{name} is called twice")
            position.setdefault(name, len(position))
            inputs[name].append(args[0].detach().numpy())

        return hook

    bns = {name: m for name, m in model.named_modules() if is_batchnorm(m)}
    hooks = [m.register_forward_pre_hook(note(name)) for name, m in bns.items()]
    try:
        finished = 0
        while True:
            inputs.clear()
            for batch in batches:
                with torch.no_grad():
                    model(batch)
                inputs["batch"].append(None)
            order = sorted(position, key=position.get)
            if finished == len(order):
                break
            name = order[finished]
            rows = np.concatenate([np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in inputs[name]])
            for buffer, value in (("running_mean", rows.mean(0)), ("running_var", rows.var(0, ddof=1))):
                old = getattr(bns[name], buffer)
                old.copy_(torch.from_numpy(value).to(old))
            finished += 1
    finally:
        for hook in hooks:
            hook.remove()
        for name, m in model.named_modules():
            m.training = modes[name]
    return model


@right("recalibrate")
def one_big_batch_with_momentum_one(model, batches):
    """All data at once, and PyTorch's own update with momentum 1 in one layer after the other."""
    if isinstance(batches, types.GeneratorType):
        raise ValueError("list(...) it first")
    x = torch.cat(list(batches))
    modes = [(m, m.training) for m in model.modules()]
    order = []
    hooks = []
    for m in model.modules():
        if is_batchnorm(m):
            hooks.append(m.register_forward_pre_hook(lambda m, _: order.append(m)))
    model.eval()
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        try:
            if len(set(order)) != len(order):
                raise ValueError("twice")
            for bn in order:
                momentum, counter = bn.momentum, bn.num_batches_tracked.clone()
                bn.training, bn.momentum = True, 1.0
                model(x)
                bn.training, bn.momentum = False, momentum
                bn.num_batches_tracked.copy_(counter)
        finally:
            for m, mode in modes:
                m.training = mode
    return model


@right("recalibrate")
def statistics_from_a_copy(model, batches):
    """Works on a copy, layer by layer from an exception thrown at the layer, and takes the buffers over at the end."""
    _refuse_iterators(batches)
    twin = copy.deepcopy(model).eval()
    theirs = [m for m in twin.modules() if is_batchnorm(m)]
    mine = [m for m in model.modules() if is_batchnorm(m)]
    calls = []
    for m in theirs:
        m.register_forward_pre_hook(lambda m, _: calls.append(m))
    with torch.no_grad():
        for batch in batches:
            calls.clear()
            twin(batch)
            if any(calls.count(m) > 1 for m in calls):
                raise ValueError("called more than once")
        for layer in list(calls):
            parts = []

            def grab(m, args, parts=parts):
                parts.append(args[0])
                raise _Stop

            handle = layer.register_forward_pre_hook(grab)
            for batch in batches:
                with contextlib.suppress(_Stop):
                    twin(batch)
            handle.remove()
            parts = [p.double() for p in parts]
            axes = [0, *range(2, parts[0].dim())]
            n = sum(p[:, 0].numel() for p in parts)
            mean = sum(p.sum(axes) for p in parts) / n
            view = [1, -1, *[1] * (len(axes) - 1)]
            var = sum(((p - mean.view(view)) ** 2).sum(axes) for p in parts) / (n - 1)
            layer.running_mean.data = mean.to(layer.running_mean.dtype)
            layer.running_var.data = var.to(layer.running_var.dtype)
    for ours, their in zip(mine, theirs, strict=True):
        ours.running_mean.copy_(their.running_mean)
        ours.running_var.copy_(their.running_var)
    return model


# --- GhostBatchNorm ---------------------------------------------------------------------------------------------


@right("GhostBatchNorm")
class TorchSubclass(nn.BatchNorm1d):
    def __init__(self, num_features, virtual_batch_size, *args, **kwargs):
        super().__init__(num_features, *args, **kwargs)
        self.virtual_batch_size = virtual_batch_size

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        return torch.cat([nn.BatchNorm1d.forward(self, part) for part in torch.split(x, self.virtual_batch_size)])


@right("GhostBatchNorm")
class FromScratch(nn.Module):
    def __init__(
        self,
        num_features,
        virtual_batch_size,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.size, self.eps, self.momentum = virtual_batch_size, eps, momentum
        self.affine, self.track, self.updates = affine, track_running_stats, 0
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
            self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def normalised(self, x, mean, var):
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = (x - mean.reshape(shape)) / (var.reshape(shape) + self.eps) ** 0.5
        return y * self.weight.reshape(shape) + self.bias.reshape(shape) if self.affine else y

    def forward(self, x):
        dims = tuple(d for d in range(x.dim()) if d != 1)
        if not self.training:
            if self.track:
                return self.normalised(x, self.running_mean, self.running_var)
            return self.normalised(x, x.mean(dims), x.var(dims, unbiased=False))
        out = []
        for start in range(0, len(x), self.size):
            part = x[start : start + self.size]
            mean, var = part.mean(dims), part.var(dims, unbiased=False)
            if self.track:
                n = part.numel() / part.shape[1]
                self.updates += 1
                momentum = 1 / self.updates if self.momentum is None else self.momentum
                with torch.no_grad():
                    self.running_mean += momentum * (mean - self.running_mean)
                    self.running_var += momentum * (var * n / (n - 1) - self.running_var)
            out.append(self.normalised(part, mean, var))
        return torch.cat(out, 0)


@right("GhostBatchNorm")
class Functional(nn.Module):
    def __init__(
        self,
        num_features,
        virtual_batch_size,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
    ):
        nn.Module.__init__(self)
        kw = dict(device=device, dtype=dtype)
        self.virtual_batch_size = virtual_batch_size
        self.options = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features, **kw)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **kw)) if affine else None
        stats = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, **kw) if stats else None)
        self.register_buffer("running_var", torch.ones(num_features, **kw) if stats else None)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device) if stats else None)

    def forward(self, x):
        eps, momentum = self.options
        everything = self.running_mean, self.running_var, self.weight, self.bias
        averages, momentum = momentum is None, momentum or 0.0
        if self.training:
            y = torch.empty_like(x)
            for start in range(0, x.shape[0], self.virtual_batch_size):
                part = slice(start, start + self.virtual_batch_size)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                    momentum = 1 / self.num_batches_tracked.item() if averages else momentum
                y[part] = F.batch_norm(x[part], *everything, True, momentum, eps)
            return y
        return F.batch_norm(x, *everything, self.running_mean is None, momentum, eps)


@right("GhostBatchNorm")
class HoldsALayer(nn.Module):
    def __init__(self, num_features, virtual_batch_size, *args, **kwargs):
        super().__init__()
        self.chunk = virtual_batch_size
        self.bn = nn.BatchNorm2d(num_features, *args, **kwargs)

    def forward(self, x):
        maps = x.reshape(x.shape[0], x.shape[1], -1, 1)
        if self.training:
            k = math.ceil(len(x) / self.chunk)
            maps = torch.cat([self.bn(maps[i * self.chunk : (i + 1) * self.chunk]) for i in range(k)])
        else:
            maps = self.bn(maps)
        return maps.reshape(x.shape)


# --- momentum_for_accumulation ----------------------------------------------------------------------------------


@right("momentum_for_accumulation")
def kth_root(momentum, micro_batches):
    return 1 - (1 - momentum) ** (1 / micro_batches)


@right("momentum_for_accumulation")
def logarithms(momentum, micro_batches):
    # The logarithm of what is kept, of nothing too.
    kept = math.log(1 - momentum) if momentum < 1 else -math.inf
    return 1 - math.exp(kept / micro_batches)


@right("momentum_for_accumulation")
def numpy_power(momentum, micro_batches):
    return 1.0 - np.power(1.0 - momentum, 1.0 / micro_batches)


@right("momentum_for_accumulation")
def bisection(momentum, micro_batches):
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        kept = 1.0
        for _ in range(micro_batches):
            kept *= 1 - middle
        if 1 - kept < momentum:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@right("momentum_for_accumulation")
def through_torch(momentum, micro_batches):
    return (1 - torch.tensor(1 - momentum, dtype=torch.float64).pow(1 / micro_batches)).item()


# --- replace_batchnorm ------------------------------------------------------------------------------------------


@right("replace_batchnorm")
def recursive_with_memo(model, make):
    model = copy.deepcopy(model)
    made = {}

    def new(bn):
        if bn not in made:
            made[bn] = make(bn)
        return made[bn]

    def walk(module):
        for name, child in module._modules.items():
            if child is None:
                continue
            if is_batchnorm(child):
                module._modules[name] = new(child)
            elif child not in visited:
                visited.add(child)
                walk(child)

    visited = set()
    if is_batchnorm(model):
        return make(model)
    walk(model)
    return model


@right("replace_batchnorm")
def by_parent_name(model, make):
    result = copy.deepcopy(model)
    if "BatchNorm" in type(result).__name__:
        return make(result)
    names = [(name, m) for name, m in result.named_modules(remove_duplicate=False) if "BatchNorm" in type(m).__name__]
    replacements = {}
    for name, bn in names:
        parent, _, last = name.rpartition(".")
        if id(bn) not in replacements:
            replacements[id(bn)] = make(bn)
        setattr(result.get_submodule(parent), last, replacements[id(bn)])
    return result


@right("replace_batchnorm")
def set_submodule(model, make):
    box = nn.ModuleDict({"root": copy.deepcopy(model)})
    found = [(n, m) for n, m in box.named_modules(remove_duplicate=False) if is_batchnorm(m)]
    unique = list(dict.fromkeys(m for _, m in found))
    new = [make(m) for m in unique]
    for name, m in found:
        box.set_submodule(name, new[unique.index(m)])
    return box["root"]


@right("replace_batchnorm")
def all_parents_first(model, make):
    new = copy.deepcopy(model)
    modules = list(new.modules())
    table = {m: make(m) for m in modules if isinstance(m, _KINDS)}
    for parent in modules:
        if parent in table:
            continue
        for name in list(parent._modules):
            if parent._modules[name] in table:
                parent._modules[name] = table[parent._modules[name]]
    return table.get(new, new)


# --- weight_decay_groups ----------------------------------------------------------------------------------------


_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@right("weight_decay_groups")
def module_by_module(model, weight_decay):
    decay, none, seen = [], [], set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p in seen or not p.requires_grad:
                continue
            seen.add(p)
            if isinstance(module, _NORMS) or is_batchnorm(module) or "bias" in name:
                none.append(p)
            else:
                decay.append(p)
    return {"params": decay, "weight_decay": weight_decay}, {"params": none, "weight_decay": 0}


@right("weight_decay_groups")
def by_class_name(model, weight_decay):
    owner = {}
    for name, module in model.named_modules():
        for key, _ in module.named_parameters(prefix=name, recurse=False):
            owner[key] = type(module).__name__
    groups = [dict(params=[], weight_decay=weight_decay), dict(params=[], weight_decay=0.0)]
    for key, p in model.named_parameters():
        if p.requires_grad:
            of_norm = owner[key].rstrip("123d").endswith("Norm")
            spared = of_norm or "bias" in key.split(".")[-1]
            groups[spared]["params"].append(p)
    return groups


@right("weight_decay_groups")
def names_subtracted(model, weight_decay):
    everything = {n: p for n, p in model.named_parameters() if p.requires_grad}
    none = set()
    for prefix, m in model.named_modules():
        if isinstance(m, (*_NORMS, running_stats.BatchNorm)):
            none |= {f"{prefix}.{n}".lstrip(".") for n, _ in m.named_parameters(recurse=False)}
    none |= {n for n in everything if n[n.rfind(".") + 1 :].count("bias")}
    return (
        {"params": [everything[n] for n in everything if n not in none], "weight_decay": weight_decay},
        {"params": [everything[n] for n in everything if n in none], "weight_decay": 0.0},
    )


@right("weight_decay_groups")
def generators(model, weight_decay):
    norms = {p for m in model.modules() if is_batchnorm(m) or isinstance(m, _NORMS) for p in m.parameters()}
    biases = {p for n, p in model.named_parameters() if "bias" in n.rsplit(".", 1)[-1]}
    wanted = [p for p in model.parameters() if p.requires_grad]
    free = norms | biases
    return [
        {"params": (p for p in wanted if p not in free), "weight_decay": weight_decay},
        {"params": (p for p in wanted if p in free), "weight_decay": 0.0},
    ]
