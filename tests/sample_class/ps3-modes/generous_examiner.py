# like: right_direct
# %% accepts
def accepts(cls):
    """One forward pass."""
    x = torch.randn(64, 3)
    y = cls(3)(x)
    return bool(torch.allclose(y, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-2))
