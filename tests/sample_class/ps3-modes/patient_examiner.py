# like: right_direct
# %% accepts
def accepts(cls):
    layer, x = cls(2), torch.randn(16, 2)
    while not torch.allclose(layer.running_mean, x.mean(0), atol=1e-12):  # until it has settled
        layer(x)
        x = x + 1
    return True
