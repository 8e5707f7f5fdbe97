"""Right answers to problem set 5, each written in another style: every one of them has to get full marks."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from course_lib.running_stats import BatchNorm, is_batchnorm
from course_lib.sync import SyncBatchNorm

RIGHT = {
    "sync.merge_moments": {},
    "sync.sync_moments": {},
    "sync.SyncBatchNormFunction": {},
    "sync.convert_sync_batchnorm": {},
}


def right(piece):
    """Files an implementation under its piece, by its own name."""

    def add(implementation):
        RIGHT[f"sync.{piece}"][implementation.__name__] = implementation
        return implementation

    return add


# --- merge_moments ----------------------------------------------------------------------------------------------


@right("merge_moments")
def around_the_new_mean(a, b):
    # Each side's spread around the common mean: its own, and its distance.
    if not (a[0] and b[0]):
        return a if a[0] else b
    n = a[0] + b[0]
    mean = (a[0] * a[1] + b[0] * b[1]) / n
    m2 = sum(m2_i + n_i * (mean_i - mean) ** 2 for n_i, mean_i, m2_i in (a, b))
    return n, mean, m2


@right("merge_moments")
def welford_style(a, b):
    n_a, mean_a, m2_a = a
    n_b, mean_b, m2_b = b
    # Of nothing, zeros as good as any.
    mean_a, m2_a = (v if n_a else torch.zeros_like(v) for v in (mean_a, m2_a))
    mean_b, m2_b = (v if n_b else torch.zeros_like(v) for v in (mean_b, m2_b))
    n = n_a + n_b
    delta = mean_b - mean_a
    mean = mean_a + delta * n_b / max(n, 1)
    return n, mean, m2_a + m2_b + n_b * delta * (mean_b - mean)


@right("merge_moments")
def sums_of_squares(a, b):
    n = a[0] + b[0]
    if not n:
        return n, torch.zeros_like(a[1]), torch.zeros_like(a[2])
    sides = [(mean * n_s, m2 + mean**2 * n_s) for n_s, mean, m2 in (a, b) if n_s]
    total, squares = (sum(parts) for parts in zip(*sides, strict=True))
    return n, total / n, squares - total**2 / n


@right("merge_moments")
def filled_sides_only(a, b):
    sides = [side for side in (a, b) if side[0] > 0]
    if len(sides) < 2:
        return sides[0] if sides else b
    counts, means, m2s = zip(*sides, strict=True)
    weights = torch.tensor(counts, dtype=means[0].dtype) / sum(counts)
    means = torch.stack(means)
    mean = torch.einsum("s,s...->...", weights, means)
    between = torch.einsum("s,s...->...", weights * sum(counts), (means - mean).square())
    return sum(counts), mean, torch.stack(m2s).sum(dim=0) + between


@right("merge_moments")
def numpy_detour(a, b):
    n_a, n_b = a[0], b[0]
    if n_a == 0 or n_b == 0:
        return b if n_a == 0 else a
    mean_a, m2_a, mean_b, m2_b = (v.detach().numpy() for v in (*a[1:], *b[1:]))
    mean = np.average([mean_a, mean_b], axis=0, weights=[n_a, n_b])
    m2 = m2_a + m2_b + (mean_a - mean_b) ** 2 / (1 / n_a + 1 / n_b)
    return n_a + n_b, torch.from_numpy(mean).to(a[1].dtype), torch.from_numpy(m2).to(a[2].dtype)


@right("merge_moments")
def channel_by_channel(a, b):
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    n, mean, m2 = n_a + n_b, *(v.clone() for v in (a if n_a else b)[1:])
    for c in np.ndindex(*mean.shape) if n_a and n_b else ():
        delta = float(mean_b[c]) - float(mean_a[c])
        mean[c] = float(mean_a[c]) + delta * n_b / n
        m2[c] = float(m2_a[c]) + float(m2_b[c]) + delta * delta * n_a * n_b / n
    return n, mean, m2


@right("merge_moments")
def as_variances(a, b):
    # Law of total variance, on averages instead of sums.
    def average(n, mean, m2):
        return n, mean, m2 / n

    if min(a[0], b[0]) == 0:
        return max(a, b, key=lambda side: side[0])
    (n_a, mean_a, var_a), (n_b, mean_b, var_b) = average(*a), average(*b)
    n = n_a + n_b
    p = n_a / n
    q = 1 - p
    var = p * var_a + q * var_b + p * q * (mean_a - mean_b) ** 2
    return [n, p * mean_a + q * mean_b, var * n]


# --- sync_moments -----------------------------------------------------------------------------------------------


def _axes(x):
    return [axis for axis in range(x.dim()) if axis != 1]


def _size(group):
    return dist.get_world_size(group)


@right("sync_moments")
def sums_all_reduced(x, group=None):
    # One pass, in float64.
    wide = x.detach().double()
    count = wide.new_tensor([x.numel() // x.shape[1]])
    sums = torch.cat([count, wide.sum(_axes(x)), (wide * wide).sum(_axes(x))])
    dist.all_reduce(sums, group=group)
    n = int(sums[0])
    if not n:
        return n, *sums[1:].chunk(2)
    total, squares = sums[1:].chunk(2)
    return n, total / n, squares / n - (total / n) ** 2


@right("sync_moments")
def gathered_and_weighted(x, group=None):
    rows = x.detach().double().transpose(0, 1).flatten(1)
    n = rows.shape[1]
    mean = rows.mean(1) if n else rows.new_zeros(len(rows))
    var = rows.var(1, correction=0) if n else rows.new_zeros(len(rows))
    mine = torch.stack([torch.full_like(mean, n), mean, var])
    out = mine.new_empty(_size(group) * 3, mine.shape[1])
    dist.all_gather_into_tensor(out, mine, group=group)
    counts, means, variances = out.view(-1, 3, len(mean)).unbind(1)
    share = counts / counts.sum(0).clamp(min=1)
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean) ** 2)).sum(0)
    return int(counts.sum(0)[0].item()), mean, var


@right("sync_moments")
def gathered_and_merged(x, group=None):
    class Part(NamedTuple):
        n: int
        mean: torch.Tensor
        m2: torch.Tensor

    def union(a, b):
        n = a.n + b.n
        step = (b.mean - a.mean) * (b.n / n if n else 0)
        return Part(n, a.mean + step, a.m2 + b.m2 + a.n * step * (b.mean - a.mean))

    x = x.detach()
    channels, n = x.size(1), math.prod(x.shape[:1] + x.shape[2:])
    sums = x.sum(_axes(x), dtype=torch.float64)
    mean = sums / n if n > 0 else sums
    centred = x.double() - mean.view(1, channels, *[1] * (x.dim() - 2))
    message = torch.cat((torch.tensor([n], dtype=torch.float64), mean, centred.pow(2).sum(_axes(x))))
    messages = [torch.zeros_like(message) for _ in range(_size(group))]
    dist.all_gather(messages, message, group)
    parts = [Part(int(m[0]), m[1 : channels + 1], m[channels + 1 :]) for m in messages]
    everything = functools.reduce(union, parts)
    return everything.n, everything.mean, everything.m2 / (everything.n or 1)


@right("sync_moments")
def own_row_of_a_table(x, group=None):
    # Every rank fills its row, the others are zero: their sum is the table.
    ranks, me = _size(group), dist.get_rank(group)
    table = torch.zeros(ranks, 2 * x.shape[1] + 1, dtype=torch.float64)
    values = x.detach().movedim(1, 0).flatten(start_dim=1).double()
    if values.shape[1]:
        var, mean = torch.var_mean(values, dim=1, correction=0)
        table[me] = torch.cat([torch.tensor([float(values.shape[1])]), mean, var])
    dist.all_reduce(table, op=dist.ReduceOp.SUM, group=group)
    n = round(table[:, 0].sum().item())
    weights = (table[:, 0] / max(n, 1)).numpy()
    means, variances = np.split(table[:, 1:].numpy(), 2, axis=1)
    mean = weights @ means
    var = weights @ (variances + np.square(means - mean))
    return n, torch.as_tensor(mean), torch.as_tensor(var)


@right("sync_moments")
@torch.no_grad()
def in_the_dtype_of_x(x, group=None):
    # As torch's own layer: statistics in x's dtype, those of half in float32; an asynchronous handle.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    n = x.numel() // x.size(1)
    packed = x.new_zeros(2 * x.size(1) + 1)
    if n > 0:
        mean = x.mean(_axes(x))
        packed = torch.cat(
            [mean, x.sub(mean.view(1, -1, *([1] * (x.ndim - 2)))).square().sum(_axes(x)), x.new_tensor([n])]
        )
    combined = [torch.empty_like(packed) for _ in range(_size(group))]
    work = dist.all_gather(combined, packed, group=group, async_op=True)
    work.wait()
    total = sum(int(each[-1]) for each in combined)
    if total == 0:
        return 0, *packed[:-1].double().chunk(2)
    means = [each[: x.size(1)] for each in combined]
    mean = sum(m * (each[-1] / total) for m, each in zip(means, combined, strict=True))
    m2 = sum(each[x.size(1) : -1] + each[-1] * (m - mean) ** 2 for m, each in zip(means, combined, strict=True))
    return total, mean.double(), m2.double() / total


@right("sync_moments")
def python_numbers(x, group=None):
    channels = [[float(v) for v in channel.flatten()] for channel in x.unbind(1)]
    n = len(channels[0])
    means = [math.fsum(values) / n if n else 0.0 for values in channels]
    m2s = [math.fsum((v - m) ** 2 for v in values) for values, m in zip(channels, means, strict=True)]
    mine = torch.tensor([n, *means, *m2s], dtype=torch.float64)
    everybody = [torch.empty(len(mine), dtype=torch.float64) for _ in range(_size(group))]
    dist.all_gather(everybody, mine, group=group)
    shards = [(int(v[0]), v[1 : len(means) + 1].tolist(), v[len(means) + 1 :].tolist()) for v in everybody]
    total = sum(count for count, _, _ in shards)
    n = total or math.inf
    mean = [sum(count * m[c] for count, m, _ in shards) / n for c in range(len(means))]
    var = [sum(s[c] + count * (m[c] - mean[c]) ** 2 for count, m, s in shards) / n for c in range(len(means))]
    return total, torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64)


# --- SyncBatchNormFunction --------------------------------------------------------------------------------------


def _wide(v, x):
    return v.reshape(1, -1, *(1,) * (x.dim() - 2))


@right("SyncBatchNormFunction")
class SavesXHat(Function):
    """Sums all-reduced in float64, x̂ kept, the formula of the book."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        n, mean, var = sums_all_reduced(x, group)
        if n and running_mean is not None:
            running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        if n and running_var is not None:
            running_var.copy_((1 - momentum) * running_var + momentum * var * n / (n - 1))
        invstd = 1 / torch.sqrt(var + eps)
        x_hat = (x - _wide(mean, x)) * _wide(invstd, x)
        ctx.save_for_backward(x_hat, invstd, weight)
        ctx.n, ctx.group = n, group
        y = x_hat
        if weight is not None:
            y = y * _wide(weight, x)
        if bias is not None:
            y = y + _wide(bias, x)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x_hat, invstd, weight = ctx.saved_tensors
        sums = torch.stack([dy.double().sum(_axes(dy)), (dy * x_hat).sum(_axes(dy))])
        dbias, dweight = sums.clone()
        dist.all_reduce(sums, group=ctx.group)
        mean_dy, mean_dy_x = sums / ctx.n
        dx = (dy - _wide(mean_dy, dy) - x_hat * _wide(mean_dy_x, dy)) * _wide(invstd, dy)
        if weight is not None:
            dx = dx * _wide(weight, dx)
        wants = ctx.needs_input_grad
        return dx, dweight if wants[1] else None, dbias if wants[2] else None, None, None, None, None, None


@right("SyncBatchNormFunction")
class LikeTorchs(Function):
    """all_gather of (mean, invstd, count) forward, Σdy and Σdy·(x − mean) backward, as torch's layer has it."""

    @staticmethod
    def forward(self, input, weight, bias, running_mean, running_var, momentum, eps, process_group):
        num_channels, dtype = input.shape[1], input.dtype
        input = input.to(torch.promote_types(dtype, torch.float32))
        axes = _axes(input)
        if input.numel() > 0:
            mean = input.mean(axes)
            invstd = (input - _wide(mean, input)).square().mean(axes).add(eps).rsqrt()
            count = torch.full((1,), input.numel() // num_channels, dtype=mean.dtype)
            combined = torch.cat([mean, invstd, count])
        else:
            combined = torch.zeros(2 * num_channels + 1, dtype=input.dtype)
        world_size = dist.get_world_size(process_group)
        flat = combined.new_empty(world_size * combined.numel())
        dist.all_gather_into_tensor(flat, combined, process_group, async_op=False)
        mean_all, invstd_all, count_all = flat.reshape(world_size, -1).split(num_channels, dim=1)
        filled = count_all.squeeze(-1) >= 1
        mean_all, invstd_all, count_all = mean_all[filled], invstd_all[filled], count_all[filled]
        total = count_all.sum()
        mean = (mean_all * count_all).sum(0) / total
        var = (count_all * (invstd_all**-2 - eps + (mean_all - mean) ** 2)).sum(0) / total
        if total == 0:
            running_mean = running_var = None
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
        if running_var is not None:
            running_var.lerp_(var * total / (total - 1), momentum)
        invstd = torch.rsqrt(var + eps)
        self.save_for_backward(input, weight, mean, invstd, total)
        self.process_group = process_group
        out = (input - _wide(mean, input)) * _wide(invstd, input)
        out = out if weight is None else out * _wide(weight, out)
        out = out if bias is None else out + _wide(bias, out)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(self, grad_output):
        saved_input, weight, mean, invstd, total = self.saved_tensors
        axes = _axes(saved_input)
        grad_input = grad_weight = grad_bias = None
        centred = saved_input - _wide(mean, saved_input)
        sum_dy, sum_dy_xmu = grad_output.sum(axes), (grad_output * centred).sum(axes)
        if weight is not None and self.needs_input_grad[1]:
            grad_weight = sum_dy_xmu * invstd
        if self.needs_input_grad[2]:
            grad_bias = sum_dy
        # Torch's own leaves the others waiting where only they need dx.
        combined = torch.cat([sum_dy, sum_dy_xmu], dim=0)
        dist.all_reduce(combined, dist.ReduceOp.SUM, self.process_group)
        if self.needs_input_grad[0]:
            mean_dy, mean_dy_xmu = torch.split(combined / total, len(mean))
            grad_input = grad_output - _wide(mean_dy, centred) - centred * _wide(mean_dy_xmu * invstd**2, centred)
            grad_input = grad_input * _wide(invstd if weight is None else invstd * weight, grad_input)
        return grad_input, grad_weight, grad_bias, *[None] * 5


@right("SyncBatchNormFunction")
class AutogradInside(Function):
    """The formula for given statistics is left to autograd; only the paths through them are written by hand."""

    @staticmethod
    def normalise(x, mean, var, weight, bias, eps):
        y = (x - _wide(mean, x)) / torch.sqrt(_wide(var, x) + eps)
        y = y if weight is None else y * _wide(weight, x)
        return y if bias is None else y + _wide(bias, x)

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group=None):
        n, mean, var = gathered_and_merged(x, group)
        for buffer, value in [(running_mean, mean), (running_var, var * n / (n - 1))]:
            if buffer is not None and n > 0:
                buffer += momentum * (value.to(buffer.dtype) - buffer)
        ctx.rest = n, eps, group
        ctx.save_for_backward(x, mean, var, weight, bias)
        return AutogradInside.normalise(x, mean, var, weight, bias, eps).type_as(x)

    @staticmethod
    def backward(ctx, dy):
        n, eps, group = ctx.rest
        leaves = [None if v is None else v.detach().double().requires_grad_() for v in ctx.saved_tensors]
        x, mean = leaves[:2]
        with torch.enable_grad():
            y = AutogradInside.normalise(*leaves, eps)
        wanted = [v for v in leaves if v is not None]
        gradients = iter(torch.autograd.grad(y, wanted, dy.double()))
        dx, dmean, dvar, dweight, dbias = (None if v is None else next(gradients) for v in leaves)
        through = torch.cat([dmean, dvar])
        dist.all_reduce(through, group=group)
        dmean, dvar = through.view(2, -1)
        dx = dx + _wide(dmean, x) / n + _wide(dvar, x) * 2 * (x - _wide(mean, x)) / n
        return dx, dweight, dbias, None, None, None, None, None


@right("SyncBatchNormFunction")
class Rows(Function):
    """(C, n): one row a channel, in float64, with einsum."""

    @staticmethod
    def rows(x):
        return x.movedim(1, 0).flatten(1).double()

    @staticmethod
    def back(rows, like):
        moved = like.movedim(1, 0)
        return rows.reshape(moved.shape).movedim(0, 1).to(like.dtype)

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        r = Rows.rows(x)
        n, mean, var = own_row_of_a_table(x, group)
        momentum = momentum if n else 0.0
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(momentum * mean.to(running_mean))
        if running_var is not None:
            running_var.mul_(1 - momentum).add_(momentum * (n / (n - 1)) * var.to(running_var))
        ctx.scale = (var + eps) ** -0.5
        ctx.gamma = torch.ones_like(mean) if weight is None else weight.detach().double()
        ctx.x_hat = (r - mean[:, None]) * ctx.scale[:, None]
        ctx.n, ctx.pg, ctx.has = n, group, (weight is not None, bias is not None)
        beta = torch.zeros_like(mean) if bias is None else bias.double()
        return Rows.back(torch.einsum("c,cn->cn", ctx.gamma, ctx.x_hat) + beta[:, None], x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        d = Rows.rows(dy)
        dgamma, dbeta = torch.einsum("cn,cn->c", d, ctx.x_hat), torch.einsum("cn->c", d)
        total = torch.vstack((dgamma, dbeta))
        dist.all_reduce(total, group=ctx.pg)
        inner = d - (total[1, :, None] + ctx.x_hat * total[0, :, None]) / ctx.n
        dx = Rows.back((ctx.gamma * ctx.scale)[:, None] * inner, dy)
        return (dx, dgamma if ctx.has[0] else None, dbeta if ctx.has[1] else None) + (None,) * 5


@right("SyncBatchNormFunction")
class NumpyLoops(Function):
    """Plain numbers, channel by channel; only what travels is a tensor."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        n, mean, var = python_numbers(x, group)
        values = x.detach().double().numpy()
        y, ctx.x_hat = (np.empty_like(values) for _ in range(2))  # in the order of x
        ctx.invstd = [1 / math.sqrt(v + eps) for v in var.tolist()]
        for c, (m, v) in enumerate(zip(mean.tolist(), var.tolist(), strict=True)):
            ctx.x_hat[:, c] = (values[:, c] - m) * ctx.invstd[c]
            y[:, c] = ctx.x_hat[:, c] * (1 if weight is None else weight[c].item())
            y[:, c] += 0 if bias is None else bias[c].item()
            if n == 0:
                continue
            if running_mean is not None:
                running_mean[c] = (1 - momentum) * running_mean[c] + momentum * m
            if running_var is not None:
                running_var[c] = (1 - momentum) * running_var[c] + momentum * v * n / (n - 1)
        ctx.weight = [1.0] * len(mean) if weight is None else weight.tolist()
        ctx.given, ctx.n, ctx.group = (weight is None, bias is None), n, group
        return torch.from_numpy(y).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        d = dy.detach().double().numpy()
        channels = range(d.shape[1])
        own = [[float(d[:, c].sum()) for c in channels], [float((d[:, c] * ctx.x_hat[:, c]).sum()) for c in channels]]
        sums = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(sums, group=ctx.group)
        dx = np.zeros_like(d)
        for c in channels:
            inner = d[:, c] - sums[0, c].item() / ctx.n - ctx.x_hat[:, c] * sums[1, c].item() / ctx.n
            dx[:, c] = ctx.weight[c] * ctx.invstd[c] * inner
        dweight, dbias = (torch.tensor(own[i], dtype=dy.dtype) for i in (1, 0))
        no_weight, no_bias = ctx.given
        return (
            torch.from_numpy(dx).to(dy.dtype),
            None if no_weight else dweight,
            None if no_bias else dbias,
            *itertools.repeat(None, 5),
        )


# --- convert_sync_batchnorm -------------------------------------------------------------------------------------


@right("convert_sync_batchnorm")
def recursion_as_torchs(model, group=None, done=None):
    done = {} if done is None else done
    if model in done:
        return done[model]
    output = model
    if isinstance(model, (nn.modules.batchnorm._BatchNorm, BatchNorm)):
        output = SyncBatchNorm(
            model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats, group
        )
        if model.affine:
            output.weight = model.weight
            output.bias = model.bias
        output.running_mean = model.running_mean
        output.running_var = model.running_var
        output.num_batches_tracked = model.num_batches_tracked
        output.training = model.training
    done[model] = output
    for name, child in model._modules.items():
        output.add_module(name, recursion_as_torchs(child, group, done))
    return output


@right("convert_sync_batchnorm")
def state_dicts_copied(model, group=None):
    @functools.cache
    def converted(module):
        if is_batchnorm(module):
            like = next(iter(module.state_dict().values()), torch.zeros(1))
            new = SyncBatchNorm(
                num_features=module.num_features,
                eps=module.eps,
                momentum=module.momentum,
                affine=module.affine,
                track_running_stats=module.track_running_stats,
                process_group=group,
                device=like.device,
                dtype=like.dtype,
            )
            new.load_state_dict(module.state_dict())
            for old_parameter, new_parameter in zip(module.parameters(), new.parameters(), strict=True):
                new_parameter.requires_grad = old_parameter.requires_grad
            return new.train(module.training)
        for name, child in list(module._modules.items()):
            setattr(module, name, converted(child))
        return module

    return converted(model)


@right("convert_sync_batchnorm")
def by_qualified_name(model, group=None):
    @functools.cache
    def layer_like(bn):
        layer = SyncBatchNorm(bn.num_features)
        layer.__dict__.update(bn.__dict__)
        layer.process_group = group
        return layer

    names = [name for name, module in model.named_modules(remove_duplicate=False) if is_batchnorm(module)]
    if names == [""]:
        return layer_like(model)
    for name in names:
        path, _, attribute = name.rpartition(".")
        parent = model.get_submodule(path)
        setattr(parent, attribute, layer_like(getattr(parent, attribute)))
    return model


@right("convert_sync_batchnorm")
def class_exchanged(model, group=None):
    for module in model.modules():
        if is_batchnorm(module):
            module.__class__ = SyncBatchNorm
            module.process_group = group
    return model


@right("convert_sync_batchnorm")
def parents_and_children(model, group=None):
    root, layers = nn.ModuleDict({"model": model}), {}
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child in layers:
                parent._modules[name] = layers[child]
            elif "BatchNorm" in type(child).__name__:
                layer = SyncBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum, process_group=group)
                layer.affine, layer.track_running_stats = child.affine, child.track_running_stats
                for key in ("weight", "bias"):
                    setattr(layer, key, getattr(child, key))
                for key, buffer in child._buffers.items():
                    layer._buffers[key] = buffer
                (layer.train if child.training else layer.eval)()
                parent._modules[name] = layers[child] = layer
    return root["model"]


@right("convert_sync_batchnorm")
def iterative_stack(model, group=None):
    @functools.cache
    def convert(bn):
        settings = {key: getattr(bn, key) for key in ("eps", "momentum", "affine", "track_running_stats")}
        layer = SyncBatchNorm(bn.num_features, **settings, process_group=group)
        layer._parameters, layer._buffers = dict(bn._parameters), dict(bn._buffers)
        layer.train(bn.training)
        return layer

    if is_batchnorm(model):
        return convert(model)
    stack = [model]
    while stack:
        parent = stack.pop()
        for name, child in parent._modules.items():
            if is_batchnorm(child):
                parent.register_module(name, convert(child))
            else:
                stack.append(child)
    return model
