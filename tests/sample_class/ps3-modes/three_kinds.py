# like: right_direct
# %% bn-modes
def bn_modes(model):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    result = {}
    for name, m in model.named_modules():
        if isinstance(m, kinds):
            result[name] = "train" if m.training else "eval"
    return result
