# %% freeze-batchnorm
def _layers(model):
    return [m for m in model.modules() if "BatchNorm" in type(m).__name__]


def freeze_batchnorm(model, affine=True):
    """Remember, then stop."""
    for layer in _layers(model):
        if getattr(layer, "memory", None) is None:
            layer.memory = {"mode": layer.training}
            layer.memory.update({name: p.requires_grad for name, p in layer.named_parameters()})
        layer.train = Always(nn.Module.train, layer, False)
        layer.train()
        if affine:
            for _, p in layer.named_parameters():
                p.requires_grad = False
    return model

# %% unfreeze-batchnorm
def unfreeze_batchnorm(model):
    for layer in _layers(model):
        memory = getattr(layer, "memory", None)
        if memory is not None:
            layer.memory = None
            layer.__dict__.pop("train")
            layer.train(memory["mode"])
            for name, p in layer.named_parameters():
                p.requires_grad = memory[name]
    return model

# %% recalibrate
import contextlib


class Found(Exception):
    pass


@contextlib.contextmanager
def hooked(layer, function):
    handle = layer.register_forward_pre_hook(function)
    try:
        yield
    finally:
        handle.remove()


def moments(model, layer, batches):
    """n, mean, M2 of a layer's input, joined batch by batch; the rest of the network behind it is not run."""
    n, mean, m2 = 0, 0.0, 0.0
    for batch in batches:
        got = []

        def look(module, args):
            got.append(args[0])
            raise Found

        with hooked(layer, look), contextlib.suppress(Found):
            model(batch)
        x = got[0].double().transpose(0, 1).flatten(1)
        k, its = x.shape[1], x.mean(1)
        delta, total = its - mean, n + x.shape[1]
        m2 = m2 + ((x - its[:, None]) ** 2).sum(1) + delta**2 * n * k / total
        mean, n = mean + delta * k / total, total
    return n, mean, m2


def recalibrate(model, batches):
    if hasattr(batches, "__next__"):
        raise ValueError("not a generator, please")
    training = {m for m in model.modules() if m.training}
    calls = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for m in model.modules():
            m.training = False
        try:
            for layer in _layers(model):
                stack.enter_context(hooked(layer, lambda m, a: calls.append(m)))
            model(next(iter(batches)))
            stack.close()
            if len(calls) > len(set(calls)):
                raise ValueError("a layer is called twice")
            for layer in calls:
                n, mean, m2 = moments(model, layer, batches)
                layer.running_mean[:] = mean
                layer.running_var[:] = m2 / (n - 1)
        finally:
            for m in training:
                m.training = True
    return model

# %% GhostBatchNorm
class GhostBatchNorm(nn.Module):
    def __init__(self, num_features, virtual_batch_size, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, device=None, dtype=None):
        super().__init__()
        self.virtual_batch_size, self.eps, self.momentum, self.seen = virtual_batch_size, eps, momentum, 0
        make = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **make)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **make)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features, **make) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features, **make) if track_running_stats else None)

    def forward(self, x):
        if not self.training and self.running_mean is not None:
            return self.apply_to(x, self.running_mean, self.running_var)
        parts = x.split(self.virtual_batch_size) if self.training else [x]
        return torch.cat([self.one(part) for part in parts])

    def one(self, x):
        axes = [d for d in range(x.dim()) if d != 1]
        n = x.numel() / x.shape[1]
        mean, var = x.mean(axes), x.var(axes, correction=0)
        if self.training and self.running_mean is not None:
            self.seen += 1
            m = 1 / self.seen if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.mul_(1 - m).add_(mean, alpha=m)
                self.running_var.mul_(1 - m).add_(var, alpha=m * n / (n - 1))
        return self.apply_to(x, mean, var)

    def apply_to(self, x, mean, var):
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = (x - mean.view(shape)) * torch.rsqrt(var + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

# %% momentum-for-accumulation
def momentum_for_accumulation(momentum, micro_batches):
    if momentum == 1:  # nothing is kept, and nothing has no logarithm
        return 1.0
    kept = math.exp(math.log(1 - momentum) / micro_batches)
    return 1 - kept

# %% replace-batchnorm
def replace_batchnorm(model, make):
    def swap(module, table):
        if is_batchnorm(module):
            if module not in table:
                table[module] = make(module)
            return table[module]
        for name in list(module._modules):
            if module._modules[name] is not None and module._modules[name] not in table.values():
                setattr(module, name, swap(module._modules[name], table))
        return module

    return swap(copy.deepcopy(model), {})

# %% weight-decay-groups
def weight_decay_groups(model, weight_decay):
    in_norms = set()
    for m in model.modules():
        if type(m).__name__.rstrip("123d").endswith("Norm"):
            in_norms.update(id(p) for p in m.parameters())
    groups = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups["bias" not in name.split(".")[-1] and id(p) not in in_norms].append(p)
    return {"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0}
