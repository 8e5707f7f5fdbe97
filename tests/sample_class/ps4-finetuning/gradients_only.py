# like: right_methods
# %% freeze-batchnorm
def freeze_batchnorm(model, affine=True):
    for m in model.modules():
        if is_batchnorm(m):
            if not hasattr(m, "old"):
                m.old = [p.requires_grad for p in m.parameters()]
            if affine:
                for p in m.parameters():
                    p.requires_grad = False
    return model

# %% unfreeze-batchnorm
def unfreeze_batchnorm(model):
    for m in model.modules():
        if hasattr(m, "old"):
            for p, flag in zip(m.parameters(), m.old):
                p.requires_grad = flag
            del m.old
    return model
