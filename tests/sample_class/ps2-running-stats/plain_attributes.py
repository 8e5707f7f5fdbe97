# like: right_plain
# %% BatchNorm
class BatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None
        self.running_mean = torch.zeros(num_features, device=device, dtype=dtype) if track_running_stats else None
        self.running_var = torch.ones(num_features, device=device, dtype=dtype) if track_running_stats else None
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if track_running_stats else None)

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError("channels")
        axes, shape = (0, *range(2, x.dim())), (1, -1) + (1,) * (x.dim() - 2)
        n = x.numel() // x.shape[1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training or self.running_mean is None:
            if n == 1:
                raise ValueError("one value")
            mean, var = wide.mean(axes), wide.var(axes, unbiased=False)
            if self.running_mean is not None and n:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    m = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                    self.running_mean.mul_(1 - m).add_(m * mean)
                    self.running_var.mul_(1 - m).add_(m * var * n / (n - 1))
        else:
            mean, var = self.running_mean, self.running_var
        y = (wide - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
