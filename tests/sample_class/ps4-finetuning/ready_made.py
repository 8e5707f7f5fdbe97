# like: right_methods
# %% recalibrate
from torch.optim.swa_utils import update_bn


def recalibrate(model, batches):
    update_bn(batches, model)
    return model
