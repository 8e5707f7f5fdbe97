# like: right_by_hand
# %% replace-batchnorm
def replace_batchnorm(model, make):
    for name, child in model._modules.items():
        if is_batchnorm(child):
            setattr(model, name, make(child))
        elif child is not None:
            replace_batchnorm(child, make)
    return make(model) if is_batchnorm(model) else model

# %% weight-decay-groups
def weight_decay_groups(model, weight_decay):
    decay = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    none = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": none, "weight_decay": 0.0}]
