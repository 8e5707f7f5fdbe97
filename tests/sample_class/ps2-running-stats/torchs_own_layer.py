# like: right_plain
# %% BatchNorm
class BatchNorm(nn.BatchNorm2d):
    def _check_input_dim(self, x):  # any rank
        if x.shape[1] != self.num_features:
            raise ValueError("channels")
