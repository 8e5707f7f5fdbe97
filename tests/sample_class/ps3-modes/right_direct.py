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

# %% accepts
class _Doubt(Exception):
    """Something is not as it should be."""


def _sure(condition):
    if not condition:
        raise _Doubt


def _near(got, want, tolerance=2e-4):
    return got.shape == want.shape and torch.allclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def _noise(rng, *shape):
    return torch.tensor(rng.normal(1.0, 2.0, shape), dtype=torch.float32)


def accepts(cls):
    """An oracle in float64 lives the same life, chosen at random; after each step everything is compared."""
    rng = np.random.default_rng(7)

    def as_maps(x):
        return x.double() if x.dim() == 4 else x.double()[..., None, None]

    def step(layer, oracle, x, training, grad):
        layer.train(training), oracle.train(training)
        with torch.set_grad_enabled(grad):
            mine, exact = x.clone(), as_maps(x)
            if grad:
                mine.requires_grad_(), exact.requires_grad_()
            y, want = layer(mine), oracle(exact)
            _sure(y.dtype == torch.float32 and _near(y, want.reshape(x.shape)))
            _sure(torch.equal(mine, x))
            if grad:
                dy = _noise(rng, *x.shape)
                for module, out, g in ((layer, y, dy.clone()), (oracle, want, as_maps(dy))):
                    module.zero_grad()
                    out.backward(g)
                _sure(_near(mine.grad, exact.grad.reshape(x.shape)))
                theirs = [p.grad for p in oracle.parameters()]
                _sure(len(list(layer.parameters())) == len(theirs))
                for p, g in zip(layer.parameters(), theirs, strict=True):
                    _sure(any(_near(p.grad, other) for other in theirs) and g is not None)
        ours, truth = layer.state_dict(), oracle.state_dict()
        _sure(set(ours) == set(truth))
        _sure(all(_near(ours[k], truth[k]) for k in truth))
        _sure(all(ours[k].dtype == (torch.int64 if k.endswith("tracked") else torch.float32) for k in truth))
        _sure(not any(b.requires_grad for b in layer.buffers()))

    def life(**settings):
        layer, oracle = cls(3, **settings), nn.BatchNorm2d(3, **settings)
        fresh = oracle.state_dict()
        _sure(set(layer.state_dict()) == set(fresh))
        _sure(all(_near(v, fresh[k]) for k, v in layer.state_dict().items()))
        state = {k: v if k.endswith("tracked") else v + _noise(rng, *v.shape).abs() for k, v in fresh.items()}
        layer.load_state_dict(state), oracle.load_state_dict(state)
        oracle.double()
        held = {name: b for name, b in layer.named_buffers()}
        for _ in range(2):
            for shape in ((8, 3), (3, 3), (5, 3, 4, 2)):
                for training, grad in ((False, False), (True, True), (True, False), (False, True)):
                    step(layer, oracle, _noise(rng, *shape), training, grad)
        if settings.get("track_running_stats", True):
            step(layer, oracle, _noise(rng, 1, 3), False, False)
        for name, b in layer.named_buffers():
            _sure(b is held[name])
        for shape in ((1, 3), (1, 3, 1, 1)):
            try:
                layer.train()(_noise(rng, *shape))
                raise _Doubt
            except ValueError:
                pass
        return layer

    try:
        for settings in ({}, {"momentum": None}, {"momentum": 0.7, "eps": 0.3}, {"affine": False}):
            life(**settings)
        life(track_running_stats=False)
        for training in (True, False):
            layer = cls(3).train(training)
            for shape in ((0, 3), (0, 3, 2, 4)):
                _sure(layer(torch.zeros(shape)).shape == shape)
                _sure(not layer.running_mean.any() and bool((layer.running_var == 1).all()))
    except Exception:
        return False
    return True
