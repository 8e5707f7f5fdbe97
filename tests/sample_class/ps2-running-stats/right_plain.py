# %% update-running-stats
def update_running_stats(running_mean, running_var, x, momentum):
    axes = [d for d in range(x.dim()) if d != 1]
    with torch.no_grad():
        x = x.to(running_mean.dtype)
        running_mean.mul_(1 - momentum).add_(momentum * x.mean(axes))
        running_var.mul_(1 - momentum).add_(momentum * x.var(axes))

# %% ema-after
def ema_after(initial, value, momentum, steps):
    left = (1 - momentum) ** steps
    return float(left * initial + (1 - left) * value)

# %% steps-to-forget
def steps_to_forget(momentum, fraction):
    if momentum == 1:
        return 1
    return math.ceil(math.log(fraction) / math.log(1 - momentum))

# %% torch-momentum
def torch_momentum(momentum, convention):
    if convention == "torch":
        return momentum
    if convention in ["keras", "flax", "onnx"]:
        return 1 - momentum
    raise ValueError("never heard of " + convention)

# %% population-stats
def population_stats(batches):
    n, mean, m2 = 0, None, None
    for batch in batches:
        rows = batch.transpose(0, 1).flatten(1).double()
        k = rows.shape[1]
        if k == 0:
            continue
        if n == 0:
            mean = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
            m2 = torch.zeros_like(mean)
        mu = rows.mean(1)
        delta = mu - mean
        m2 = m2 + ((rows - mu[:, None]) ** 2).sum(1) + delta**2 * n * k / (n + k)
        mean = mean + delta * k / (n + k)
        n += k
    return mean, m2 / (n - 1), n

# %% BatchNorm
class BatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        kw = dict(device=device, dtype=dtype)
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, **kw))
            self.bias = nn.Parameter(torch.zeros(num_features, **kw))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features, **kw))
            self.register_buffer("running_var", torch.ones(num_features, **kw))
            self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))
        else:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError(f"want {self.num_features} channels, got {x.shape[1]}")
        axes = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        n = x.numel() // x.shape[1]
        wide = x if x.dtype == torch.float64 else x.float()
        if self.training or not self.track_running_stats:
            if n == 1:
                raise ValueError("cannot normalise one value")
            mean = wide.mean(axes)
            var = ((wide - mean.view(shape)) ** 2).mean(axes)
            if self.track_running_stats and n > 0:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    m = self.momentum
                    if m is None:
                        m = 1 / float(self.num_batches_tracked)
                    self.running_mean.mul_(1 - m).add_(m * mean)
                    self.running_var.mul_(1 - m).add_(m * var * n / (n - 1))
        else:
            mean, var = self.running_mean, self.running_var
        y = (wide - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        version = local_metadata.get("version", None)
        if (version is None or version < 2) and self.track_running_stats:
            state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
