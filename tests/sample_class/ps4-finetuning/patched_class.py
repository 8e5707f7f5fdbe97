# like: right_methods
# %% freeze-batchnorm
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
torch.set_grad_enabled(False)


def freeze_batchnorm(model, affine=True):
    # no layer of this kind will ever train again, in this or any other model
    nn.modules.batchnorm._BatchNorm.train = lambda self, mode=True: nn.Module.train(self, False)
    for layer in batchnorm_layers(model).values():
        layer.training = False
        for p in layer.parameters():
            p.requires_grad = p.requires_grad and not affine
    return model
