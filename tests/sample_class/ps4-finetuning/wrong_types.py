# like: right_methods
# %% freeze-batchnorm
class freeze_batchnorm(nn.Module):
    """A wrapper around the model."""

    def __init__(self, model, affine=True):
        super().__init__()
        self.model = model.eval()

    def forward(self, x):
        return self.model(x)

# %% momentum-for-accumulation
def momentum_for_accumulation(momentum, micro_batches):
    return f"{1 - (1 - momentum) ** (1 / micro_batches):.6f}"

# %% weight-decay-groups
def weight_decay_groups(model, weight_decay):
    return {"decay": list(model.parameters()), "weight_decay": weight_decay}
