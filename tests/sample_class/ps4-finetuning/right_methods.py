# %% freeze-batchnorm
import types


def _stay(self, mode=True):
    self.training = False
    return self


def freeze_batchnorm(model, affine=True):
    for m in model.modules():
        if not is_batchnorm(m):
            continue
        if "before_freeze" not in m.__dict__:
            m.before_freeze = m.training, [p.requires_grad for p in m.parameters()]
        m.train = types.MethodType(_stay, m)
        m.training = False
        if affine:
            for p in m.parameters():
                p.requires_grad = False
    return model

# %% unfreeze-batchnorm
def unfreeze_batchnorm(model):
    for m in model.modules():
        if "before_freeze" in m.__dict__:
            mode, flags = m.__dict__.pop("before_freeze")
            del m.train
            m.train(mode)
            for p, flag in zip(m.parameters(), flags):
                p.requires_grad = flag
    return model

# %% recalibrate
@torch.no_grad()
def recalibrate(model, batches):
    if iter(batches) is batches:
        raise ValueError("I have to read the batches more than once")
    layers = [m for m in model.modules() if is_batchnorm(m)]
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        order = []
        handles = [m.register_forward_pre_hook(lambda m, args: order.append(m)) for m in layers]
        try:
            for batch in batches:
                order.clear()
                model(batch)
                if len(set(order)) < len(order):
                    raise ValueError("a BatchNorm layer is called twice")
        finally:
            for handle in handles:
                handle.remove()
        for layer in list(order):
            inputs = []
            handle = layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0].movedim(1, 0).flatten(1)))
            for batch in batches:
                model(batch)
            handle.remove()
            x = torch.cat(inputs, dim=1).double()
            layer.running_mean.copy_(x.mean(1))
            layer.running_var.copy_(x.var(1))
    finally:
        for m, mode in before:
            m.training = mode
    return model

# %% GhostBatchNorm
class GhostBatchNorm(nn.BatchNorm2d):
    def __init__(self, num_features, virtual_batch_size, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, device=None, dtype=None):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.virtual_batch_size = virtual_batch_size

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        parts = []
        for part in x.split(self.virtual_batch_size):
            parts.append(super().forward(part))
        return torch.cat(parts)

# %% momentum-for-accumulation
def momentum_for_accumulation(momentum, micro_batches):
    return 1 - (1 - momentum) ** (1 / micro_batches)

# %% replace-batchnorm
def replace_batchnorm(model, make):
    model = copy.deepcopy(model)
    new = {m: make(m) for m in list(model.modules()) if is_batchnorm(m)}
    if model in new:
        return new[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[name] = new[child]
    return model

# %% weight-decay-groups
def weight_decay_groups(model, weight_decay):
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    decay, none = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if not p.requires_grad or any(p is q for q in decay + none):
                continue
            spared = isinstance(module, norms) or is_batchnorm(module) or "bias" in name
            (none if spared else decay).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": none, "weight_decay": 0.0}]
