"""Batch Normalization layers that are right for float32 on the CPU, each written in another style.

`accepts` has to take every one of them. The first four are also what `modes_layers_wrong` breaks. Each is sent to the
kernel of a graded notebook as a text of its own, so that they use nothing but torch and one another.
"""

import torch
import torch.nn.functional as F
from torch import nn

STYLES = {}


def right(cls):
    """Decorator that files a layer under its name."""
    STYLES[cls.__name__] = cls
    return cls


@right
class Plain(nn.Module):
    """`torch.var` twice, views for broadcasting, autograd's backward."""

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
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        make = {"device": device, "dtype": dtype}
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, **make))
            self.bias = nn.Parameter(torch.zeros(num_features, **make))
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features, **make))
            self.register_buffer("running_var", torch.ones(num_features, **make))
            self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def _load_from_state_dict(self, state_dict, prefix, metadata, *rest):
        if metadata.get("version") is None and self.track_running_stats:
            state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, self.num_features] + [1] * (x.dim() - 2)
        count = x.numel() // self.num_features
        if self.training or not self.track_running_stats:
            if count == 1:
                raise ValueError("one value per channel has no spread")
            mean = x.mean(dims)
            var = x.var(dims, correction=0) if count else torch.ones_like(mean)
            if self.track_running_stats and count:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    rate = self.momentum
                    if rate is None:
                        rate = 1 / self.num_batches_tracked.item()
                    new_var = x.var(dims, correction=1)
                    self.running_mean *= 1 - rate
                    self.running_mean += rate * mean
                    self.running_var *= 1 - rate
                    self.running_var += rate * new_var
        else:
            mean = self.running_mean
            var = self.running_var
        y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y


@right
class Rows(nn.Module):
    """Everything as rows of one channel: (C, n). The mode is asked for in one place."""

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
        self.c, self.eps, self.momentum = num_features, eps, momentum
        one = torch.ones(num_features, device=device, dtype=dtype)
        zero = one * 0
        self.register_parameter("weight", nn.Parameter(one.clone()) if affine else None)
        self.register_parameter("bias", nn.Parameter(zero.clone()) if affine else None)
        tracked = dict(running_mean=zero, running_var=one, num_batches_tracked=torch.zeros_like(zero[0]).long())
        for name, value in tracked.items():
            self.register_buffer(name, value.clone() if track_running_stats else None)
        self.register_load_state_dict_pre_hook(self.without_counter)

    @staticmethod
    def without_counter(self, state, prefix, *rest):
        if self.num_batches_tracked is not None and prefix + "num_batches_tracked" not in state:
            state[prefix + "num_batches_tracked"] = self.num_batches_tracked

    def use_batch(self):
        return self.training or self.running_mean is None

    def remember(self, mean, var, n):
        self.num_batches_tracked.add_(1)
        a = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        bessel = n / (n - 1)
        self.running_mean.lerp_(mean.detach(), a)
        self.running_var.lerp_(var.detach() * bessel, a)

    def forward(self, x):
        if x.shape[1] != self.c:
            raise RuntimeError("wrong number of channels")
        rows = x.transpose(0, 1).reshape(self.c, -1)
        n = rows.shape[1]
        if self.use_batch():
            if n == 1:
                raise ValueError("only one value")
            if n == 0:
                return torch.empty_like(x)
            var, mean = torch.var_mean(rows, dim=1, correction=0)
            if self.training and self.running_mean is not None:
                self.remember(mean, var, n)
        else:
            mean, var = self.running_mean, self.running_var
        gain = (var + self.eps) ** -0.5
        gain = gain if self.weight is None else gain * self.weight
        tail = (slice(None),) + (None,) * (x.dim() - 2)
        out = (x - mean[tail]) * gain[tail]
        return out if self.bias is None else out + self.bias[tail]


@right
class Functional(nn.Module):
    """All arithmetic by `F.batch_norm`; the bookkeeping by hand."""

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
        self.options = {"eps": eps, "momentum": momentum}
        options = {"device": device, "dtype": dtype}
        self.weight = self.bias = None
        self.running_mean = self.running_var = self.num_batches_tracked = None
        if affine:
            del self.weight, self.bias
            self.weight = nn.Parameter(torch.empty(num_features, **options).fill_(1.0))
            self.bias = nn.Parameter(torch.empty(num_features, **options).fill_(0.0))
        if track_running_stats:
            del self.running_mean, self.running_var, self.num_batches_tracked
            self.register_buffer("num_batches_tracked", torch.zeros([], dtype=torch.long, device=device))
            self.register_buffer("running_var", torch.full([num_features], 1.0, **options))
            self.register_buffer("running_mean", torch.full([num_features], 0.0, **options))

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        counter = prefix + "num_batches_tracked"
        if counter in missing and metadata.get("version", 1) < 2:
            missing.remove(counter)

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.options["eps"])
        a = self.options["momentum"]
        if mean is not None:
            self.num_batches_tracked.add_(1)
            a = 1.0 / self.num_batches_tracked.item() if a is None else a
        return F.batch_norm(x, mean, var, self.weight, self.bias, True, a or 0.0, self.options["eps"])


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, mean, var, eps, constant):
        dims = [0, 2, 3][: x.dim() - 1]
        shape = [-1, 1, 1][: x.dim() - 1]
        s = 1 / torch.sqrt(var + eps)
        hat = (x - mean.reshape(shape)) * s.reshape(shape)
        ctx.save_for_backward(hat, s, w)
        ctx.more = dims, shape, constant
        return hat * w.reshape(shape) + b.reshape(shape)

    @staticmethod
    def backward(ctx, g):
        hat, s, w = ctx.saved_tensors
        dims, shape, constant = ctx.more
        gw = (g * hat).sum(dims)
        gb = g.sum(dims)
        gx = g
        if not constant:
            gx = gx - g.mean(dims).reshape(shape)
            gx = gx - hat * (g * hat).mean(dims).reshape(shape)
        return gx * (w * s).reshape(shape), gw, gb, None, None, None, None


@right
class Handmade(nn.Module):
    """A hand-written backward, statistics outside of the graph, two-pass variance from sums."""

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
        self.num_features, self.eps, self.momentum, self.track = num_features, eps, momentum, track_running_stats
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None
        if self.track:
            self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
            self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
            self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.int64))

    def _load_from_state_dict(self, state, prefix, meta, *rest):
        if (meta.get("version") or 0) < 2 and self.track:
            state.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        return super()._load_from_state_dict(state, prefix, meta, *rest)

    @torch.no_grad()
    def moments(self, x):
        dims = [0, 2, 3][: x.dim() - 1]
        n = x.numel() // x.size(1)
        mean = x.sum(dims) / n
        squares = (x - mean.reshape([-1, 1, 1][: x.dim() - 1])).pow(2).sum(dims)
        if self.track:
            self.num_batches_tracked.add_(1)
            rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.copy_(rate * mean + (1 - rate) * self.running_mean)
            self.running_var.copy_(rate * squares / (n - 1) + (1 - rate) * self.running_var)
        return mean, squares / n

    def forward(self, x):
        assert x.size(1) == self.num_features, "channels"
        batch = self.training or not self.track
        if batch and x.numel() == x.size(1):
            raise ValueError("more than one value per channel, please")
        if x.numel() == 0:
            return x.clone()
        w = x.new_ones(self.num_features) if self.weight is None else self.weight
        b = x.new_zeros(self.num_features) if self.bias is None else self.bias
        if self.training:
            mean, var = self.moments(x)
        elif self.track:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var = self.moments(x)
        return _ByHand.apply(x, w, b, mean, var, self.eps, not batch)


# --- right ones only --------------------------------------------------------------------------------------------


@right
class Synchronised(nn.SyncBatchNorm):
    """Without a process group it is any rank's BatchNorm."""


@right
class TorchBacked(nn.BatchNorm2d):
    """Torch's layer, told not to look at the rank."""

    def _check_input_dim(self, x):
        pass


@right
class TorchByRank(nn.BatchNorm2d):
    """Torch's layer behind a reshape."""

    def forward(self, x):
        return super().forward(x if x.dim() == 4 else x[:, :, None, None]).view_as(x)


@right
class Wrapped(nn.Module):
    """Holds torch's layer, and shows its state as its own."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.bn = nn.BatchNorm2d(*args, **kwargs)
        self.register_state_dict_post_hook(self.without_prefix)
        self.register_load_state_dict_pre_hook(self.with_prefix)

    @staticmethod
    def without_prefix(self, state, prefix, metadata):
        for key in [key for key in state if key.startswith(f"{prefix}bn.")]:
            state[prefix + key.removeprefix(f"{prefix}bn.")] = state.pop(key)

    @staticmethod
    def with_prefix(self, state, prefix, metadata, *rest):
        names = {name for name, _ in (*self.bn.named_parameters(), *self.bn.named_buffers())}
        for name in names:
            if prefix + name in state:
                state[f"{prefix}bn.{name}"] = state.pop(prefix + name)
            elif name == "num_batches_tracked":
                state[f"{prefix}bn.{name}"] = self.bn.num_batches_tracked

    def forward(self, x):
        return self.bn(x if x.dim() == 4 else x[..., None, None]).reshape(x.shape)


@right
class Doubles(Rows):
    """E[x²] − E[x]², which is right in float64."""

    def forward(self, x):
        if not self.use_batch() or x.numel() in (0, self.c) or x.shape[1] != self.c:
            return super().forward(x)
        rows = x.double().transpose(0, 1).flatten(1)
        mean = rows.mean(1)
        var = rows.square().mean(1) - mean.square()
        if self.training and self.running_mean is not None:
            self.remember(mean.float(), var.float(), rows.shape[1])
        gain = (var + self.eps).rsqrt()
        tail = (slice(None),) + (None,) * (x.dim() - 2)
        out = ((x.double() - mean[tail]) * gain[tail]).float()
        if self.weight is not None:
            out = out * self.weight[tail] + self.bias[tail]
        return out


@right
class Welford(Handmade):
    """One sample after another, as a stream would come; the last step in one multiplication and one addition."""

    @torch.no_grad()
    def moments(self, x):
        mean, m2, n = x.new_zeros(x.size(1)), x.new_zeros(x.size(1)), 0
        for value in x.movedim(1, -1).reshape(-1, x.size(1)):
            n += 1
            delta = value - mean
            mean = mean + delta / n
            m2 = m2 + delta * (value - mean)
        if self.track:
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else self.num_batches_tracked.float().reciprocal()
            self.running_mean += rate * (mean - self.running_mean)
            self.running_var += rate * (m2 / (n - 1) - self.running_var)
        return mean, m2 / n
