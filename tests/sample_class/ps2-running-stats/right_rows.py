# %% update-running-stats
def rows_of(x):
    return torch.movedim(x, 1, 0).reshape(x.shape[1], -1)


def update_running_stats(running_mean, running_var, x, momentum):
    var, mean = torch.var_mean(rows_of(x.detach()).to(running_mean.dtype), dim=1)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var, momentum)

# %% ema-after
def ema_after(initial, value, momentum, steps):
    at = float(initial)
    for _ in range(steps):
        at += momentum * (value - at)
    return at

# %% steps-to-forget
def steps_to_forget(momentum, fraction):
    left, k = 1.0, 0
    while left > fraction:
        left *= 1 - momentum
        k += 1
    return k

# %% torch-momentum
def torch_momentum(momentum, convention):
    weights_of_new = {"torch": momentum, "keras": 1 - momentum, "flax": 1 - momentum, "onnx": 1 - momentum}
    try:
        return weights_of_new[convention]
    except KeyError:
        raise ValueError(f"{convention} is none of {list(weights_of_new)}") from None

# %% population-stats
def population_stats(batches):
    # it all fits into memory here
    rows = torch.cat([rows_of(b).double() for b in batches], dim=1)
    return rows.mean(1), rows.var(1), rows.shape[1]

# %% own
def normalised(rows, eps):
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    var = (centred * centred).mean(1, keepdim=True)
    return centred * torch.rsqrt(var + eps), mean[:, 0].detach(), var[:, 0].detach()

# %% BatchNorm
class BatchNorm(nn.Module):
    _version = 2

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None):
        super().__init__()
        self.c, self.eps, self.momentum = num_features, eps, momentum
        one = torch.ones(num_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(one.clone()) if affine else None
        self.bias = nn.Parameter(one * 0) if affine else None
        state = {"running_mean": one * 0, "running_var": one.clone(), "num_batches_tracked": one.sum().long() * 0}
        for name, value in state.items():
            self.register_buffer(name, value if track_running_stats else None)
        self.register_load_state_dict_pre_hook(self.fill_in)

    @staticmethod
    def fill_in(module, state_dict, prefix, *rest):
        if module.num_batches_tracked is not None:
            state_dict.setdefault(prefix + "num_batches_tracked", module.num_batches_tracked)

    def forward(self, x):
        assert x.shape[1] == self.c, f"{x.shape[1]} channels for {self.c}"
        moved = x.movedim(1, 0)
        rows = moved.reshape(self.c, -1).to(torch.promote_types(x.dtype, torch.float32))
        if self.training or self.running_mean is None:
            n = rows.shape[1]
            if n == 1:
                raise ValueError("n = 1")
            y, mean, var = normalised(rows, self.eps)
            if self.running_mean is not None and n:
                self.num_batches_tracked.add_(1)
                m = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.copy_(torch.lerp(self.running_mean.to(mean), mean, m))
                self.running_var.copy_(torch.lerp(self.running_var.to(var), var * n / (n - 1), m))
        else:
            y = (rows - self.running_mean[:, None]) * torch.rsqrt(self.running_var + self.eps)[:, None]
        if self.weight is not None:
            y = y * self.weight[:, None] + self.bias[:, None]
        out = torch.empty_like(x)  # of the same memory format
        out.copy_(y.reshape(moved.shape).movedim(0, 1))
        return out
