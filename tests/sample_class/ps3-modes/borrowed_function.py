# like: right_direct
# %% BatchNormFunction
import torch.nn.functional as nnf


class BatchNormFunction:
    @staticmethod
    def apply(x, weight, bias, running_mean, running_var, training, momentum, eps):
        return nnf.batch_norm(
            x, running_mean, running_var, weight, bias, training or running_mean is None, momentum, eps
        )
