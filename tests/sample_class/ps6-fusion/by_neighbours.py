# like: right_graph
# %% fusion-report
def pairs(model):
    before, found = (None, None), []
    for name, module in model.named_modules():
        if is_foldable(module):
            ok = isinstance(before[1], (nn.Linear, *CONVOLUTIONS)) and not module.training and module.running_mean is not None
            found.append((before[0] if ok else None, name))
        before = name, module
    return found


def fusion_report(model, example):
    return [(name, "no layer before it" if layer is None else "fused") for layer, name in pairs(model)]

# %% fuse
def fuse(model, example):
    model = copy.deepcopy(model)
    for layer, name in pairs(model):
        if layer is not None:
            a, bn = model.get_submodule(layer), model.get_submodule(name)
            model.set_submodule(layer, fuse_linear_bn(a, bn) if isinstance(a, nn.Linear) else fuse_conv_bn(a, bn))
            model.set_submodule(name, nn.Identity())
    return model
