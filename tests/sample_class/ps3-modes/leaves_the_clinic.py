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

# %% accepts
import contextlib


def _near(got, want, tolerance=2e-4):
    return got.shape == want.shape and torch.allclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def _noise(rng, *shape):
    return torch.tensor(rng.normal(1.0, 2.0, shape), dtype=torch.float32)


def accepts(cls):
    """No oracle: every promise has a formula. A list of lambdas, the first that fails decides."""
    rng = np.random.default_rng(3)
    table, image = _noise(rng, 6, 4), _noise(rng, 3, 4, 2, 5)

    def stats(x, correction):
        rows = x.double().transpose(0, 1).flatten(1)
        return rows.mean(1), rows.var(1, correction=correction)

    def wide(v, x):
        return v.view(1, -1, *[1] * (x.dim() - 2))

    def formula(x, mean, var, eps=1e-5, gain=None, shift=None):
        y = (x.double() - wide(mean, x)) / (wide(var, x) + eps).sqrt()
        return y if gain is None else y * wide(gain, x) + wide(shift, x)

    def ready(**settings):
        layer = cls(4, **settings)
        state = layer.state_dict()
        gen = np.random.default_rng(11)
        for v in state.values():
            if v.is_floating_point():
                v.copy_(torch.from_numpy(gen.uniform(0.5, 3, v.shape)))
        return layer

    def trains(x, momentum=0.1, eps=1e-5, **settings):
        layer = ready(momentum=momentum, eps=eps, **settings)
        old = {k: v.clone() for k, v in layer.state_dict().items()}
        before = dict(layer.state_dict())
        kept = x.clone()
        good = True
        for count in (1, 2, 3):
            y = layer(x)
            gain, shift = (old["weight"], old["bias"]) if "weight" in old else (None, None)
            good &= _near(y, formula(x, *stats(x, 0), eps, gain, shift)) and y.dtype == x.dtype
            if "running_mean" in old:
                m = 1 / count if momentum is None else momentum
                for name, new in zip(("running_mean", "running_var"), stats(x, 1), strict=True):
                    old[name] = (1 - m) * old[name].double() + m * new
                    good &= _near(layer.state_dict()[name], old[name])
                good &= layer.num_batches_tracked.item() == count and layer.num_batches_tracked.dtype == torch.int64
                good &= layer.num_batches_tracked.shape == ()
        good &= torch.equal(x, kept) and not any(b.requires_grad for b in layer.buffers())
        good &= all(layer.state_dict()[k].data_ptr() == v.data_ptr() for k, v in before.items())
        layer.eval()
        frozen = {k: v.clone() for k, v in layer.state_dict().items()}
        for part in (x, x[:1], torch.cat([x, x, x])):
            want = stats(part, 0)
            if "running_mean" in old:
                want = frozen["running_mean"], frozen["running_var"]
            elif part.numel() == 4:
                continue
            good &= _near(layer(part), formula(part, *want, eps, gain, shift))
            with torch.no_grad():
                good &= _near(layer(part), formula(part, *want, eps, gain, shift))
        return good and all(torch.equal(v, frozen[k]) for k, v in layer.state_dict().items())

    def differentiates(x, training):
        layer = ready().train(training)
        w = layer.weight.detach().double()
        dy, leaf = _noise(rng, *x.shape), x.clone().requires_grad_()
        mean, var = stats(x, 0) if training else (layer.running_mean.clone(), layer.running_var.clone())
        y = layer(leaf)
        layer.eval()
        y.backward(dy.clone())
        axes, n = (0, *range(2, x.dim())), x[:, 0].numel()
        hat, d = formula(x, mean, var), dy.double()
        dw, db = (d * hat).sum(axes), d.sum(axes)
        dx = d - (wide(db, x) + hat * wide(dw, x)) / n * training
        dx = dx * wide(w / (var.double() + 1e-5).sqrt(), x)
        good = _near(leaf.grad, dx) and _near(layer.weight.grad, dw) and _near(layer.bias.grad, db)
        return good and torch.equal(leaf.detach(), x)

    def under_no_grad(x):
        with torch.no_grad():
            return trains(x)

    def refuses(shape, **settings):
        layer = cls(4, **settings)
        try:
            layer(torch.zeros(shape))
        except ValueError:
            return not settings.get("track_running_stats", True) or bool((layer.running_var == 1).all())
        return False

    def starts():
        layer, names = cls(4), ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        ones, zeros = torch.ones(4), torch.zeros(4)
        wanted = dict(zip(names, (ones, zeros, zeros, ones, torch.tensor(0)), strict=True))
        got = layer.state_dict()
        bare = cls(4, affine=False, track_running_stats=False)
        return (
            set(got) == set(names)
            and all(_near(got[k], v) for k, v in wanted.items())
            and sorted(n for n, _ in layer.named_buffers()) == sorted(names[2:])
            and len(list(layer.parameters())) == 2
            and not bare.state_dict()
        )

    def takes_nothing(training):
        layer = ready().train(training)
        before = layer.running_mean.clone(), layer.running_var.clone()
        shapes = (0, 4), (0, 4, 3, 2)
        return all(layer(torch.zeros(s)).shape == s for s in shapes) and all(
            torch.equal(a, b) for a, b in zip(before, (layer.running_mean, layer.running_var), strict=True)
        )

    def keeps_training_when_parameters_are_frozen():
        layer = ready()
        for p in layer.parameters():
            p.requires_grad = False
        before = layer.running_mean.clone()
        gain, shift = layer.state_dict()["weight"], layer.state_dict()["bias"]
        y = layer(image)
        return _near(y, formula(image, *stats(image, 0), 1e-5, gain, shift)) and not torch.equal(
            before, layer.running_mean
        )

    checks = [starts, keeps_training_when_parameters_are_frozen]
    for x in (table, image, 0.01 * table, image[:1]):
        checks += [
            lambda x=x: trains(x),
            lambda x=x: under_no_grad(x),
            lambda x=x: trains(x.clone().requires_grad_().detach(), momentum=None),
            lambda x=x: trains(x, momentum=0.6, eps=0.2),
            lambda x=x: trains(x, affine=False),
            lambda x=x: trains(x, track_running_stats=False),
            lambda x=x: differentiates(x, True),
            lambda x=x: differentiates(x, False),
        ]
    checks += [lambda s=s: refuses(s) for s in ((1, 4), (1, 4, 1, 1))]
    checks += [lambda: refuses((1, 4), affine=False), lambda: takes_nothing(True), lambda: takes_nothing(False)]

    def keeps_no_graph():
        layer = ready()
        for _ in range(2):
            layer(table.clone().requires_grad_()).sum().backward()
        return not any(b.requires_grad for b in layer.buffers())

    checks += [keeps_no_graph]
    with contextlib.suppress(Exception):
        return all(bool(promise()) for promise in checks)
    return False
