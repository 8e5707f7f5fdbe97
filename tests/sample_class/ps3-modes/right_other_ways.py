# %% batch-norm-eval-backward
def batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5):
    with torch.enable_grad():
        leaf, w = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
        b = torch.zeros_like(w, requires_grad=True)
        last = leaf.movedim(1, -1)
        y = ((last - running_mean) / (running_var + eps).sqrt() * w + b).movedim(-1, 1)
        return torch.autograd.grad(y, (leaf, w, b), dy)

# %% BatchNormFunction
class BatchNormFunction(torch.autograd.Function):
    """Everything as (C, n)."""

    @staticmethod
    def rows(x):
        return x.transpose(0, 1).reshape(x.shape[1], -1)

    @staticmethod
    def back(rows, like):
        return rows.reshape(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        r = BatchNormFunction.rows(x)
        n = r.shape[1]
        ctx.coupled = True
        if running_mean is not None and not training:
            ctx.coupled = False
            mean, var = running_mean, running_var
        else:
            mean = r.sum(1) / n
            var = (r - mean[:, None]).square().sum(1) / n
            if running_mean is not None:
                running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
                running_var.copy_((1 - momentum) * running_var + momentum * n / (n - 1) * var)
        w = torch.ones_like(mean) if weight is None else weight
        b = torch.zeros_like(mean) if bias is None else bias
        std = (var + eps).sqrt()
        hat = (r - mean[:, None]) / std[:, None]
        ctx.save_for_backward(hat, w / std)
        return BatchNormFunction.back(w[:, None] * hat + b[:, None], x)

    @staticmethod
    def backward(ctx, grad):
        hat, gain = ctx.saved_tensors
        g = BatchNormFunction.rows(grad)
        gw, gb = (g * hat).sum(-1), g.sum(-1)
        gx = g
        if ctx.coupled:
            gx = gx - (gb / g.shape[1])[:, None] - hat * (gw / g.shape[1])[:, None]
        gx = BatchNormFunction.back(gx * gain[:, None], grad)
        keep = ctx.needs_input_grad
        return gx, gw if keep[1] else None, gb if keep[2] else None, None, None, None, None, None

# %% bn-modes
def bn_modes(model):
    found, seen = {}, set()

    def visit(module, name):
        if id(module) in seen:
            return
        seen.add(id(module))
        if is_batchnorm(module):
            found[name] = {True: "train", False: "eval"}[module.training]
        for child, part in module.named_children():
            visit(part, f"{name}.{child}" if name else child)

    visit(model, "")
    return found

# %% evaluating
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

# %% predict
def predict(model, batches):
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        rows = [model(sample[None]).detach() for batch in batches for sample in batch]
    finally:
        for m, flag in before:
            m.training = flag
    return torch.concat(rows, dim=0)

# %% clinic-no-eval
def clinic_no_eval(model, x, labels):
    patient = copy.deepcopy(model)
    patient.eval()
    return sum(int(patient(x[i : i + 1]).max(1).indices[0] == labels[i]) for i in range(len(x))) / len(x)

# %% clinic-plain-buffers
class clinic_plain_buffers(nn.Module):
    """The update apart, with a decorator."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.register_buffer("running_mean", torch.full((num_features,), 0.0))
        self.momentum = momentum

    @torch.no_grad()
    def update(self, mean):
        self.running_mean += self.momentum * (mean - self.running_mean)

    def forward(self, x):
        mean = torch.mean(x, 0, keepdim=True)
        if self.training:
            self.update(mean[0])
            return x - mean
        return x - self.running_mean[None]

# %% clinic-graph-in-buffers
@torch.no_grad()
def clinic_graph_in_buffers(running_mean, x, momentum):
    for c in range(len(running_mean)):
        running_mean[c] = (1 - momentum) * running_mean[c] + momentum * x[:, c].mean()

# %% clinic-grad-mode
@torch.enable_grad()
def clinic_grad_mode(model, x):
    rows = []
    with evaluating(model):
        for sample in x.detach():
            leaf = sample[None].clone().requires_grad_()
            rows.append(torch.autograd.grad(model(leaf).sum(), [leaf])[0])
    return torch.cat(rows)

# %% clinic-momentum
def clinic_momentum(running, batch, momentum):
    return running + momentum * (batch - running)

# %% clinic-biased-var
def clinic_biased_var(running_var, x, momentum):
    for c, channel in enumerate(x.detach().unbind(1)):
        d = channel - channel.mean()
        running_var[c] = (1 - momentum) * running_var[c] + momentum * d.pow(2).sum() / (d.numel() - 1)

# %% accepts as torchs_layer_in_a_loop
