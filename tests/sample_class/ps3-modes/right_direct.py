# %% batch-norm-eval-backward
def batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5):
    shape = [1, -1] + [1] * (x.dim() - 2)
    dims = [d for d in range(x.dim()) if d != 1]
    std = torch.sqrt(running_var + eps)
    slope = weight / std
    x_hat = (x - running_mean.reshape(shape)) / std.reshape(shape)
    return dy * slope.reshape(shape), torch.sum(dy * x_hat, dims), torch.sum(dy, dims)

# %% BatchNormFunction
class BatchNormFunction(torch.autograd.Function):
    """Statistics keep their axes; None stands for what is missing, all the way."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        dims = [0, *range(2, x.dim())]
        shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
        use_batch = training or running_mean is None
        if use_batch:
            mean = x.mean(dims, keepdim=True)
            var = x.var(dims, correction=0, keepdim=True)
            if running_mean is not None:
                n = x.numel() / x.shape[1]
                running_mean += momentum * (mean.flatten() - running_mean)
                running_var += momentum * (var.flatten() * n / (n - 1) - running_var)
        else:
            mean, var = running_mean.reshape(shape), running_var.reshape(shape)
        invstd = 1 / torch.sqrt(var + eps)
        x_hat = (x - mean) * invstd
        ctx.save_for_backward(x_hat, invstd, weight)
        ctx.use_batch, ctx.dims, ctx.shape = use_batch, dims, shape
        y = x_hat.clone()
        if weight is not None:
            y *= weight.reshape(shape)
        if bias is not None:
            y += bias.reshape(shape)
        return y

    @staticmethod
    def backward(ctx, dy):
        x_hat, invstd, weight = ctx.saved_tensors
        dx_hat = dy if weight is None else dy * weight.reshape(ctx.shape)
        dx = dx_hat * invstd
        if ctx.use_batch:
            mean_d = dx_hat.mean(ctx.dims, keepdim=True)
            mean_dx = (dx_hat * x_hat).mean(ctx.dims, keepdim=True)
            dx = invstd * (dx_hat - mean_d - x_hat * mean_dx)
        dweight = (dy * x_hat).sum(ctx.dims) if ctx.needs_input_grad[1] else None
        dbias = dy.sum(ctx.dims) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None, None, None, None

# %% bn-modes
def bn_modes(model):
    result = {}
    for name, module in model.named_modules():
        if is_batchnorm(module):
            if module.training:
                result[name] = "train"
            else:
                result[name] = "eval"
    return result

# %% evaluating
@contextmanager
def evaluating(model):
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag

# %% predict
def predict(model, batches):
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(batch) for batch in batches])

# %% clinic-no-eval
def clinic_no_eval(model, x, labels):
    with evaluating(model), torch.no_grad():
        return (model(x).argmax(1) == labels).double().mean().item()

# %% clinic-plain-buffers
class clinic_plain_buffers(nn.Module):
    """What the patient lacks, and nothing else."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x):
        if not self.training:
            return x - self.running_mean
        mean = x.mean(0)
        with torch.no_grad():
            self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        return x - mean

# %% clinic-graph-in-buffers
def clinic_graph_in_buffers(running_mean, x, momentum):
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(momentum * x.mean((0, *range(2, x.dim()))))

# %% clinic-grad-mode
def clinic_grad_mode(model, x):
    with evaluating(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(model(leaf).sum(), leaf)[0]

# %% clinic-momentum
def clinic_momentum(running, batch, momentum):
    return (1 - momentum) * running + momentum * batch

# %% clinic-biased-var
def clinic_biased_var(running_var, x, momentum):
    with torch.no_grad():
        running_var.mul_(1 - momentum).add_(momentum * x.var([0, *range(2, x.dim())], correction=1))

# %% accepts as same_life
