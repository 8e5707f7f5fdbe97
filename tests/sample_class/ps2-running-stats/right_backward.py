# like: right_plain
# %% BatchNorm
class Normalise(torch.autograd.Function):
    """Statistics, x_hat and the gradient that I derived in problem set 1."""

    @staticmethod
    def forward(ctx, x, eps):
        axes = (0, *range(2, x.dim()))
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        invstd = (var + eps).rsqrt()
        x_hat = (x - mean) * invstd
        ctx.save_for_backward(x_hat, invstd)
        ctx.mark_non_differentiable(mean, var)
        return x_hat, mean, var

    @staticmethod
    def backward(ctx, d, _, __):
        x_hat, invstd = ctx.saved_tensors
        axes = (0, *range(2, d.dim()))
        return (d - d.mean(axes, keepdim=True) - x_hat * (d * x_hat).mean(axes, keepdim=True)) * invstd, None


class BatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None, dtype=None):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(ones) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(ones)) if affine else None)
        self.register_buffer("running_mean", torch.zeros_like(ones) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones_like(ones) if track_running_stats else None)
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter if track_running_stats else None)

    def forward(self, x):
        if x.size(1) != self.num_features:
            raise ValueError("wrong number of channels")
        view = (1, self.num_features) + (1,) * (x.dim() - 2)
        n = x.numel() // self.num_features
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        if self.training or self.running_mean is None:
            if n == 1:
                raise ValueError("a single value per channel")
            if n == 0:
                return x.clone()
            y, mean, var = Normalise.apply(wide, self.eps)
            if self.training and self.running_mean is not None:
                self.remember(mean.flatten(), var.flatten() * n / (n - 1))
        else:
            y = (wide - self.running_mean.view(view)) * (self.running_var.view(view) + self.eps).rsqrt()
        if self.weight is not None:
            y = torch.addcmul(self.bias.view(view), y, self.weight.view(view))
        return y.to(x.dtype)

    @torch.no_grad()
    def remember(self, mean, var):
        self.num_batches_tracked += 1
        m = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean += m * (mean - self.running_mean)
        self.running_var += m * (var - self.running_var)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        key = prefix + "num_batches_tracked"
        if local_metadata.get("version", 1) < 2 and key in missing:
            missing.remove(key)
