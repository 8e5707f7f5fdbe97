# %% batch-norm-eval-backward
def batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5):
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    for c in range(x.shape[1]):
        invstd = 1 / (running_var[c] + eps).sqrt()
        dx[:, c] = weight[c] * invstd * dy[:, c]
        dweight[c] = (dy[:, c] * (x[:, c] - running_mean[c]) * invstd).sum()
        dbias[c] = dy[:, c].sum()
    return dx, dweight, dbias

# %% BatchNormFunction
class BatchNormFunction(torch.autograd.Function):
    """Backward builds the formula once more and asks autograd."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        ctx.by_batch, ctx.eps = training or running_mean is None, eps
        kept = (None, None) if ctx.by_batch else (running_mean.clone(), running_var.clone())
        ctx.save_for_backward(x, weight, bias, *kept)
        y = BatchNormFunction.formula(x, weight, bias, *kept, eps)
        if training and running_mean is not None:
            dims = (0, *range(2, x.dim()))
            running_mean.lerp_(x.mean(dims), momentum)
            running_var.lerp_(x.var(dims), momentum)
        return y

    @staticmethod
    def formula(x, weight, bias, mean, var, eps):
        last = x.movedim(1, -1)
        if mean is None:
            rows = last.reshape(-1, x.shape[1])
            mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
        y = (last - mean) / (var + eps) ** 0.5
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
        return y.movedim(-1, 1)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, *kept = ctx.saved_tensors
        given = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            y = BatchNormFunction.formula(*given, *kept, ctx.eps)
        leaves = [t for t in given if t is not None]
        found = iter(torch.autograd.grad(y, leaves, dy))
        return (*(None if t is None else next(found) for t in given), None, None, None, None, None)

# %% bn-modes
def bn_modes(model):
    layers = list(filter(lambda pair: is_batchnorm(pair[1]), model.named_modules()))
    words = ["train" if layer.training else "eval" for _, layer in layers]
    return dict(zip([name for name, _ in layers], words, strict=True))

# %% evaluating
@contextmanager
def evaluating(model):
    training = [name for name, module in model.named_modules() if module.training]
    for module in model.modules():
        module.training = False
    try:
        yield model
    finally:
        for name, module in model.named_modules():
            module.training = name in training

# %% predict
class evaluating:
    """`__enter__` and `__exit__`."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.was = [m.training for m in self.model.modules()]
        self.model.train(False)
        return self.model

    def __exit__(self, *error):
        for m, was in zip(self.model.modules(), self.was, strict=True):
            m.training = was
        return False


def predict(model, batches):
    results = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            results += list(model(batch))
    return torch.stack(results).clone()

# %% accepts as formulas_by_hand
