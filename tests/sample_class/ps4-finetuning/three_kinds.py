# like: right_methods
# %% freeze-batchnorm
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def freeze_batchnorm(model, affine=True):
    for m in model.modules():
        if isinstance(m, KINDS):
            if not hasattr(m, "frozen_from"):
                m.frozen_from = m.training, {name: p.requires_grad for name, p in m.named_parameters()}
            m.train = Always(nn.Module.train, m, False)
            m.train()
            for p in m.parameters():
                p.requires_grad = p.requires_grad and not affine
    return model

# %% unfreeze-batchnorm
def unfreeze_batchnorm(model):
    for m in model.modules():
        if hasattr(m, "frozen_from"):
            mode, flags = m.frozen_from
            del m.train, m.frozen_from
            m.train(mode)
            for name, p in m.named_parameters():
                p.requires_grad = flags[name]
    return model

# %% replace-batchnorm
def replace_batchnorm(model, make):
    model = copy.deepcopy(model)
    new = {m: make(m) for m in list(model.modules()) if isinstance(m, KINDS)}
    if model in new:
        return new[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[name] = new[child]
    return model
