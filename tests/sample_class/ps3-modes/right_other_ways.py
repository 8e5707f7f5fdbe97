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

# %% accepts
def accepts(cls):
    """Two training loops side by side: torch's layer and this one inside the same small network."""

    class Oracle(nn.BatchNorm2d):
        def _check_input_dim(self, x):
            pass

    def pair(**settings):
        nets = []
        for make in (cls, Oracle):
            net = nn.Sequential(nn.Identity(), make(2, **settings))
            for p in net.parameters():
                p.data.copy_(torch.tensor([0.7, -1.3]))
            nets.append(net)
        return nets

    def alike(a, b):
        if torch.is_tensor(a) and torch.is_tensor(b):
            return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        return a is None and b is None

    def compare(nets, x, training, grad, cut=None):
        results = []
        for net in nets:
            net.train(training)
            mine = x.clone().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                y = net(mine)
            if grad:
                (y * y * torch.arange(y.numel()).view(y.shape)).sum().backward()
            grads = [p.grad for p in net.parameters()]
            if grad and not all(torch.is_tensor(g) for g in grads):
                return False
            if not torch.equal(mine.detach(), x) or any(b.requires_grad for b in net.buffers()):
                return False
            state = {k: v.clone() for k, v in net.state_dict().items()}
            results.append((y.detach(), mine.grad, grads, state))
            net.zero_grad()
        (y, gx, gs, state), (y2, gx2, gs2, state2) = results
        scale = 1 + (gx2.abs().max() if grad else 0)
        fine = alike(y, y2) and alike(gx / scale if grad else None, gx2 / scale if grad else None)
        fine = fine and len(gs) == len(gs2)
        fine = fine and all(
            alike(a / (1 + b.abs().max()), b / (1 + b.abs().max())) for a, b in zip(gs, gs2, strict=True) if grad
        )
        return fine and state.keys() == state2.keys() and all(alike(state[k], state2[k]) for k in state)

    def story(**settings):
        rng = np.random.default_rng(5)
        nets = pair(**settings)
        pointers = [b.data_ptr() for b in nets[0].buffers()]
        if nets[0].state_dict().keys() != nets[1].state_dict().keys():
            return False
        for turn in range(6):
            shape = [(4, 2), (3, 2, 2, 3), (2, 2), (9, 2), (1, 2, 3, 3)][turn % 5]
            x = torch.tensor(rng.normal(2, 1 if turn % 2 else 0.02, shape), dtype=torch.float32)
            for training, grad in (
                (turn % 3 > 0, turn % 2 > 0),
                (False, False),
                (True, False),
                (False, True),
                (True, True),
            ):
                if not compare(nets, x, training, grad):
                    return False
        return pointers == [b.data_ptr() for b in nets[0].buffers()]

    def corners():
        layer = cls(2)
        for x in (torch.ones(1, 2), torch.ones(1, 2, 1, 1)):
            try:
                layer(x)
            except ValueError:
                continue
            return False
        # Empty batches: PyTorch's own layer takes them.
        for training in (False, True):
            one, other = cls(2).train(training), Oracle(2).train(training)
            for shape in ((0, 2), (0, 2, 3, 3)):
                a, b = one(torch.zeros(shape)), other(torch.zeros(shape))
                if a.shape != b.shape:
                    return False
            if not all(torch.equal(getattr(one, b), getattr(other, b)) for b in ("running_mean", "running_var")):
                return False
        frozen, truth = cls(2), Oracle(2)
        for net in (frozen, truth):
            for p in net.parameters():
                p.requires_grad_(False)
        x = torch.arange(12.0).view(6, 2)
        frozen(x), truth(x)
        return alike(frozen.running_var, truth.running_var)

    try:
        return bool(
            corners()
            and story()
            and story(momentum=None)
            and story(momentum=0.5, eps=1e-2)
            and story(affine=False)
            and story(track_running_stats=False)
            and story(affine=False, track_running_stats=False)
        )
    except Exception:
        return False
