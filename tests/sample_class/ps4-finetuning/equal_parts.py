# like: right_methods
# %% GhostBatchNorm
class GhostBatchNorm(nn.BatchNorm2d):
    # as in tabular networks: chunk the batch
    def __init__(self, num_features, virtual_batch_size, *args, **kwargs):
        super().__init__(num_features, *args, **kwargs)
        self.virtual_batch_size = virtual_batch_size

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if self.training:
            chunks = x.chunk(max(1, x.shape[0] // self.virtual_batch_size), 0)
            return torch.cat([nn.BatchNorm2d.forward(self, c) for c in chunks], dim=0)
        return super().forward(x)

# %% momentum-for-accumulation
def momentum_for_accumulation(momentum, micro_batches):
    return momentum / micro_batches
