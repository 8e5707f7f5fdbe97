# %% freeze-batchnorm
def freeze_batchnorm(model, affine=True):
    for layer in batchnorm_layers(model).values():
        layer.train = Always(nn.Module.train, layer, False)
        layer.train()
        if affine:
            for p in layer.parameters():
                p.requires_grad = False
    return model

# %% momentum-for-accumulation
def momentum_for_accumulation(momentum, micro_batches):
    return 1 - (1 - momentum) ** (1 / micro_batches)
