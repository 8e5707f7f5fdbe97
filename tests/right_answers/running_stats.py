"""Right answers to problem set 2, each in another style. `RIGHT[piece][style]` is an implementation.

They are honest, not clever: several lose digits that the reference keeps, as far as its contract allows, and some count
batches as PyTorch does.
"""

import itertools
import math
import statistics
from collections import defaultdict
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_lib import modes_examples

RIGHT = defaultdict(dict)


def right(piece):
    """Decorator that files an implementation under its piece, by its own name."""

    def add(implementation):
        RIGHT[f"running_stats.{piece}"][implementation.__name__] = implementation
        return implementation

    return add


# --- update_running_stats ---------------------------------------------------------------------------------------


@right("update_running_stats")
def mean_and_var(running_mean, running_var, x, momentum):
    dims = [d for d in range(x.ndim) if d != 1]
    x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    running_mean *= 1 - momentum
    running_mean += momentum * x.mean(dims)
    running_var *= 1 - momentum
    running_var += momentum * x.var(dims)


@right("update_running_stats")
def lerp_of_rows(running_mean, running_var, x, momentum):
    rows = x.detach().transpose(0, 1).flatten(1).to(running_mean.dtype)
    var, mean = torch.var_mean(rows, dim=1)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var, momentum)


@right("update_running_stats")
def through_torchs_function(running_mean, running_var, x, momentum):
    wide = x.detach().to(running_mean.dtype)
    F.batch_norm(wide, running_mean, running_var, training=True, momentum=momentum)


@right("update_running_stats")
def channel_loop(running_mean, running_var, x, momentum):
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].detach().flatten()]
        with torch.no_grad():
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * statistics.fmean(values)
            running_var[c] = (1 - momentum) * running_var[c] + momentum * statistics.variance(values)


@right("update_running_stats")
def numpy_detour(running_mean, running_var, x, momentum):
    values = x.detach().double().numpy()
    axes = (0, *range(2, values.ndim))
    mean, var = torch.from_numpy(values.mean(axes)), torch.from_numpy(values.var(axes, ddof=1))
    running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
    running_var.copy_((1 - momentum) * running_var + momentum * var)


@right("update_running_stats")
def towards_the_batch(running_mean, running_var, x, momentum):
    with torch.no_grad():
        flat = x.movedim(1, -1).reshape(-1, x.shape[1]).to(torch.promote_types(x.dtype, torch.float32))
        n = len(flat)
        mean = torch.einsum("nc->c", flat) / n
        centred = flat - mean
        var = torch.einsum("nc,nc->c", centred, centred) / (n - 1)
        running_mean.add_(mean - running_mean, alpha=momentum)
        running_var.add_(var - running_var, alpha=momentum)


@right("update_running_stats")
def data_attributes(running_mean, running_var, x, momentum):
    x = x.data.double()
    dims = (*range(2, x.dim()), 0)
    n = x.numel() / x.size(1)
    running_mean.data[:] = (1 - momentum) * running_mean.data + momentum * x.mean(dims)
    unbiased = x.var(dims, unbiased=False) * n / (n - 1)
    running_var.data[:] = (1 - momentum) * running_var.data + momentum * unbiased


# --- ema_after --------------------------------------------------------------------------------------------------


@right("ema_after")
def step_by_step(initial, value, momentum, steps):
    average = float(initial)
    for _ in range(steps):
        average = (1 - momentum) * average + momentum * value
    return average


@right("ema_after")
def weights_of_both(initial, value, momentum, steps):
    left = math.pow(1 - momentum, steps)
    return left * initial + (1 - left) * value


@right("ema_after")
def geometric_sum(initial, value, momentum, steps):
    weights = [momentum * (1 - momentum) ** k for k in range(steps)]
    return (1 - momentum) ** steps * initial + math.fsum(weights) * value


@right("ema_after")
def recursion(initial, value, momentum, steps):
    if steps == 0:
        return float(initial)
    return momentum * value + (1 - momentum) * recursion(initial, value, momentum, steps - 1)


@right("ema_after")
def with_a_tensor(initial, value, momentum, steps):
    buffer = torch.tensor(initial, dtype=torch.float64)
    for _ in range(steps):
        buffer.lerp_(torch.tensor(value, dtype=torch.float64), momentum)
    return buffer.item()


@right("ema_after")
def with_numpy(initial, value, momentum, steps):
    return np.float64(value) + (initial - value) * np.power(1.0 - momentum, steps)


# --- steps_to_forget --------------------------------------------------------------------------------------------


@right("steps_to_forget")
def multiplied_down(momentum, fraction):
    left, k = 1.0, 0
    while left > fraction:
        left *= 1 - momentum
        k += 1
    return k


@right("steps_to_forget")
def first_of_the_powers(momentum, fraction):
    return next(k for k in itertools.count() if (1 - momentum) ** k <= fraction)


@right("steps_to_forget")
def logarithms(momentum, fraction):
    if momentum >= 1:
        return 1
    return math.ceil(math.log(fraction) / math.log(1 - momentum))


@right("steps_to_forget")
def one_logarithm(momentum, fraction):
    return 1 if momentum == 1 else int(-(-math.log(fraction, 1 - momentum) // 1))


@right("steps_to_forget")
def with_numpy_logarithms(momentum, fraction):
    with np.errstate(divide="ignore"):
        return max(1, int(np.ceil(np.log2(fraction) / np.log2(1 - momentum))))


@right("steps_to_forget")
def bisection(momentum, fraction):
    low, high = 0, 1
    while (1 - momentum) ** high > fraction:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if (1 - momentum) ** middle <= fraction else (middle, high)
    return high


# --- torch_momentum ---------------------------------------------------------------------------------------------


@right("torch_momentum")
def table_of_functions(momentum, convention):
    table = {"torch": lambda m: m, **dict.fromkeys(("keras", "flax", "onnx"), lambda m: 1 - m)}
    if convention not in table:
        raise ValueError(f"unknown convention {convention}")
    return table[convention](momentum)


@right("torch_momentum")
def match_statement(momentum, convention):
    match convention:
        case "torch":
            return momentum
        case "keras" | "flax" | "onnx":
            return 1.0 - momentum
        case _:
            raise ValueError(convention)


@right("torch_momentum")
def asserted_first(momentum, convention):
    known = ["torch", "keras", "flax", "onnx"]
    position = known.index(convention)  # a ValueError where it is none of them
    return abs(bool(position) - momentum)


@right("torch_momentum")
def early_error(momentum, convention):
    class UnknownConvention(ValueError):
        pass

    if convention.lower() in {"keras", "flax", "onnx"}:
        momentum = -momentum + 1
    elif convention != "torch":
        raise UnknownConvention("say torch, keras, flax or onnx")
    return np.float64(momentum)


# --- population_stats -------------------------------------------------------------------------------------------


def _flat(batch):
    return batch.movedim(1, -1).reshape(-1, batch.shape[1]).double()


@right("population_stats")
def everything_at_once(batches):
    values = torch.cat([_flat(batch) for batch in batches])
    return values.mean(0), values.var(0), len(values)


@right("population_stats")
def sums_in_double(batches):
    # One pass, but in float64, and of float32 data at most: that is accurate enough.
    n, total, squares = 0, 0.0, 0.0
    for batch in batches:
        dims = [0, *range(2, batch.dim())]
        wide = batch.to(torch.float64)
        n += wide.numel() // wide.shape[1]
        total = total + wide.sum(dims)
        squares = squares + (wide**2).sum(dims)
    mean = total / n
    return mean, (squares - n * mean**2) / (n - 1), n


@right("population_stats")
def welford(batches):
    n, mean, m2 = 0, None, None
    for batch in batches:
        for value in _flat(batch):
            if n == 0:
                mean, m2 = torch.zeros_like(value), torch.zeros_like(value)
            n += 1
            delta = value - mean
            mean += delta / n
            m2 += delta * (value - mean)
    return mean, m2 / (n - 1), n


@right("population_stats")
def merged_in_a_tree(batches):
    def moments(batch):
        rows = _flat(batch)
        mean = rows.sum(0) / max(len(rows), 1)
        return len(rows), mean, ((rows - mean) ** 2).sum(0)

    def merge(a, b):
        n = a[0] + b[0]
        if n == 0:
            return a
        delta = b[1] - a[1]
        return n, a[1] + delta * b[0] / n, a[2] + b[2] + delta**2 * a[0] * b[0] / n

    parts = [moments(batch) for batch in batches]
    while len(parts) > 1:
        parts = [reduce(merge, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    n, mean, m2 = parts[0]
    return mean, m2 / (n - 1), n


@right("population_stats")
def two_passes(batches):
    batches = list(batches)
    n = sum(batch[:, 0].numel() for batch in batches)
    mean = sum(_flat(batch).sum(0) for batch in batches) / n
    squares = sum((_flat(batch) - mean).square().sum(0) for batch in batches)
    return [mean, squares / (n - 1), n]


@right("population_stats")
def numpy_columns(batches):
    columns = [np.moveaxis(batch.double().numpy(), 1, 0).reshape(batch.shape[1], -1) for batch in batches]
    values = np.concatenate(columns, axis=1)
    return torch.from_numpy(values.mean(1)), torch.from_numpy(values.var(1, ddof=1)), values.shape[1]


@right("population_stats")
def within_and_between(batches):
    # The law of total variance: the mean of the variances and the variance of the means, both weighted.
    counts, means, variances = [], [], []
    for batch in batches:
        rows = _flat(batch)
        if len(rows):
            counts.append(len(rows))
            means.append(rows.mean(0))
            variances.append(rows.var(0, correction=0))
    weights = torch.tensor(counts, dtype=torch.float64)[:, None]
    n = sum(counts)
    mean = (weights * torch.stack(means)).sum(0) / n
    biased = (weights * (torch.stack(variances) + (torch.stack(means) - mean) ** 2)).sum(0) / n
    return mean, biased * (n / (n - 1)), n


# --- BatchNorm --------------------------------------------------------------------------------------------------


class _State(nn.Module):
    """What most of these layers have in common; the forward passes differ."""

    _version = 2

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        kwargs = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **kwargs)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **kwargs)) if affine else None
        tracks = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, **kwargs) if tracks else None)
        self.register_buffer("running_var", torch.ones(num_features, **kwargs) if tracks else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if tracks else None)

    def _load_from_state_dict(self, state_dict, prefix, metadata, *rest):
        key = prefix + "num_batches_tracked"
        if (metadata.get("version") or 1) < 2 and self.num_batches_tracked is not None:
            state_dict.setdefault(key, torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)


def _tail(x):
    return (slice(None),) + (None,) * (x.dim() - 2)


@right("BatchNorm")
class NaiveOperations(_State):
    """`mean` and `var` twice, everything in place by operators."""

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.float() if x.dtype in (torch.half, torch.bfloat16) else x
        n = x.numel() // x.shape[1]
        if self.training or self.running_mean is None:
            if n == 1:
                raise ValueError("one value per channel has no spread")
            mean, var = wide.mean(dims), wide.var(dims, unbiased=False)
            if self.training and self.running_mean is not None and n:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    a = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                    self.running_mean *= 1 - a
                    self.running_mean += a * mean
                    self.running_var *= 1 - a
                    self.running_var += a * wide.var(dims)
        else:
            mean, var = self.running_mean, self.running_var
        y = (wide - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + self.eps)
        if self.weight is not None:
            y = self.weight.reshape(shape) * y + self.bias.reshape(shape)
        return y.to(x.dtype)


@right("BatchNorm")
class OneScaleOneShift(_State):
    """y = a·x + b in both modes, with `var_mean` and `lerp_`."""

    def forward(self, x):
        if x.size(1) != self.num_features:
            raise RuntimeError("channels")
        c, dims = self.num_features, (0, *range(2, x.dim()))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.training and self.running_var is not None:
            var, mean = self.running_var, self.running_mean
        elif wide[:, 0].numel() == 1:
            raise ValueError(f"a batch of shape {list(x.shape)} has one value per channel")
        elif wide.numel() == 0:
            return x * 1
        else:
            var, mean = torch.var_mean(wide, dims, correction=0)
            if self.running_mean is not None:
                self._remember(mean.detach(), var.detach(), x.numel() / c)
        a = (var + self.eps) ** -0.5
        a = a if self.weight is None else a * self.weight
        b = -mean * a if self.bias is None else self.bias - mean * a
        return (a[_tail(x)] * wide + b[_tail(x)]).to(x.dtype)

    def _remember(self, mean, var, n):
        self.num_batches_tracked.add_(1)
        a = self.momentum if self.momentum is not None else self.num_batches_tracked.double().reciprocal().item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), a)
        self.running_var.lerp_((var * n / (n - 1)).to(self.running_var.dtype), a)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mean, invstd, constant):
        wide = x.to(invstd.dtype)
        x_hat = (wide - mean[_tail(x)]) * invstd[_tail(x)]
        ctx.save_for_backward(x_hat, weight, invstd)
        ctx.constant, ctx.dtype = constant, x.dtype
        return (x_hat * weight[_tail(x)] + bias[_tail(x)]).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x_hat, weight, invstd = ctx.saved_tensors
        dims = (0, *range(2, dy.dim()))
        dy = dy.to(x_hat.dtype)
        dweight, dbias = (dy * x_hat).sum(dims), dy.sum(dims)
        dx = dy
        if not ctx.constant:
            n = dy.numel() / dy.size(1)
            dx = dy - (dbias / n)[_tail(dy)] - x_hat * (dweight / n)[_tail(dy)]
        dx = dx * (weight * invstd)[_tail(dy)]
        return dx.to(ctx.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype), None, None, None


@right("BatchNorm")
class HandmadeBackward(nn.Module):
    """A hand-written backward; statistics and bookkeeping outside of the graph; a hook for old files."""

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None
    ):
        nn.Module.__init__(self)
        self.channels, self.eps, self.momentum, self.tracks = num_features, eps, momentum, track_running_stats
        make = lambda value: torch.full((num_features,), value, device=device, dtype=dtype)  # noqa: E731
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            setattr(self, name, nn.Parameter(make(value)) if affine else None)
        if track_running_stats:
            self.register_buffer("num_batches_tracked", torch.zeros([], dtype=torch.long, device=device))
            self.register_buffer("running_var", make(1.0))
            self.register_buffer("running_mean", make(0.0))
        self.register_load_state_dict_pre_hook(self._old_files)

    @staticmethod
    def _old_files(module, state_dict, prefix, local_metadata, *rest):
        if module.tracks and local_metadata.get("version", 1) != 2:
            state_dict.setdefault(f"{prefix}num_batches_tracked", module.num_batches_tracked.clone())

    def forward(self, x):
        assert x.shape[1] == self.channels, f"expected {self.channels} channels"
        batch = self.training or not self.tracks
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        if x.numel() == 0:
            return x.clone()
        if batch:
            if x.numel() == self.channels:
                raise ValueError("more than one value per channel, please")
            mean, var = self._measure(x.detach().to(kind))
        else:
            mean, var = self.running_mean.to(kind), self.running_var.to(kind)
        weight = mean.new_ones(self.channels) if self.weight is None else self.weight
        bias = mean.new_zeros(self.channels) if self.bias is None else self.bias
        return _Normalise.apply(x, weight, bias, mean, 1 / torch.sqrt(var + self.eps), not batch)

    def _measure(self, x):
        dims = (0, *range(2, x.dim()))
        n = x.numel() / self.channels
        mean = x.sum(dims) / n
        squares = (x - mean[_tail(x)]).pow(2).sum(dims)
        if self.training and self.tracks:
            self.num_batches_tracked += 1
            rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.copy_(rate * mean + (1 - rate) * self.running_mean)
            self.running_var.copy_(rate * squares / (n - 1) + (1 - rate) * self.running_var)
        return mean, squares / n


@right("BatchNorm")
class ChannelsInTheLastAxis(_State):
    """Everything as rows (values, C), where vectors broadcast by themselves."""

    def forward(self, x):
        moved = x.movedim(1, -1)
        if moved.shape[-1] != self.num_features:
            raise ValueError("wrong number of channels")
        rows = moved.reshape(-1, self.num_features)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        y = self._normalised(rows)
        return y.to(x.dtype).reshape(moved.shape).movedim(-1, 1)

    def _normalised(self, rows):
        if self.training or self.running_mean is None:
            if len(rows) == 1:
                raise ValueError("one row")
            if len(rows) == 0:
                return rows
            mean = rows.mean(0)
            centred = rows - mean
            var = torch.einsum("nc,nc->c", centred, centred) / len(rows)
            if self.running_mean is not None:
                self._update(mean, var * len(rows) / (len(rows) - 1))
        else:
            centred, var = rows - self.running_mean, self.running_var
        y = centred / (var + self.eps).sqrt()
        return y if self.weight is None else torch.addcmul(self.bias, y, self.weight)

    @torch.no_grad()
    def _update(self, mean, var):
        self.num_batches_tracked.add_(1)
        rate = self.momentum
        if rate is None:
            rate = 1.0 / float(self.num_batches_tracked)
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.add_((new - buffer).to(buffer.dtype), alpha=rate)


@right("BatchNorm")
class DoubleInside(_State):
    """float64 inside, one pass over the data: accurate enough for what comes in."""

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise IndexError(x.shape[1])
        shape = (1, self.num_features, *(1 for _ in x.shape[2:]))
        wide = x.double()
        mean, var = self.statistics(wide)
        invstd = torch.rsqrt(var + self.eps).view(shape)
        y = (wide - mean.view(shape)) * invstd
        for parameter, apply in ((self.weight, torch.mul), (self.bias, torch.add)):
            if parameter is not None:
                y = apply(y, parameter.view(shape))
        return y.to(x.dtype)

    def statistics(self, x):
        own = self.running_mean is None
        if not (self.training or own):
            return self.running_mean.double(), self.running_var.double()
        n = x.numel() // self.num_features
        if n == 1:
            raise ValueError("got a single value per channel")
        dims = (0, *range(2, x.dim()))
        mean = x.mean(dims)
        var = (x.square().mean(dims) - mean.square()).clamp(min=0)
        if self.training and not own and n > 0:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                new = 1 / self.num_batches_tracked if self.momentum is None else torch.tensor(self.momentum)
                old = 1 - new
                self.running_mean.copy_(old * self.running_mean + new * mean)
                self.running_var.copy_(old * self.running_var + new * var * (n / (n - 1)))
        return mean, var


@right("BatchNorm")
class ChannelByChannel(_State):
    """A loop over the channels into an output of x's layout; float32 for every input."""

    def forward(self, x):
        if x.shape[1] != len(self):
            raise ValueError(f"{x.shape[1]} is not {len(self)}")
        batch = self.training or self.running_mean is None
        y = torch.empty_like(x)
        n = x[:, 0].numel()
        if batch and n == 1:
            raise ValueError("n = 1")
        moves = self.training and self.running_mean is not None and n > 0
        rate = self._rate() if moves else None
        for c in range(len(self)):
            values = x[:, c].float()
            mean = values.mean() if batch else self.running_mean[c]
            var = (values - mean).square().mean() if batch else self.running_var[c]
            channel = (values - mean) / (var + self.eps) ** 0.5
            if self.weight is not None:
                channel = channel * self.weight[c] + self.bias[c]
            y[:, c] = channel.to(x.dtype)
            if moves:
                with torch.no_grad():
                    self.running_mean[c] += rate * (mean - self.running_mean[c])
                    self.running_var[c] += rate * (var * n / (n - 1) - self.running_var[c])
        return y

    def _rate(self):
        self.num_batches_tracked += 1
        return self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()

    def __len__(self):
        return self.num_features


@right("BatchNorm")
class DerivedFromTorchs(nn.modules.batchnorm._BatchNorm):
    """Torch's state and bookkeeping, an own forward."""

    def _check_input_dim(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError("channels")

    def forward(self, x):
        self._check_input_dim(x)
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        batch = self.training or self.running_mean is None
        buffers = (
            (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None,) * 2
        )
        return F.batch_norm(x, *buffers, self.weight, self.bias, batch, momentum or 0.0, self.eps)


RIGHT["running_stats.BatchNorm"]["TorchBacked"] = modes_examples.AnyRank
RIGHT["running_stats.BatchNorm"]["SyncOfOneProcess"] = nn.SyncBatchNorm
