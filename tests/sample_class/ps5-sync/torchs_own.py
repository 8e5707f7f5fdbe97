# like: right_gather
# %% SyncBatchNormFunction
from torch.nn.modules._functions import SyncBatchNorm as TheirFunction


class SyncBatchNormFunction:
    @staticmethod
    def apply(x, weight, bias, running_mean, running_var, momentum, eps, group):
        size = dist.get_world_size(group)
        return TheirFunction.apply(x, weight, bias, running_mean, running_var, eps, momentum, group, size)

# %% convert-sync-batchnorm
def convert_sync_batchnorm(model, group=None):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
