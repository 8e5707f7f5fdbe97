# like: right_direct
# %% own
# for gradcheck
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
torch.set_grad_enabled(True)
torch.use_deterministic_algorithms(True)

# %% bn-modes
torch.set_grad_enabled(False)  # no gradients needed from here on


def bn_modes(model):
    found = {}
    for name, module in model.named_modules():
        if is_batchnorm(module):
            found[name] = ["eval", "train"][module.training]
    return found
