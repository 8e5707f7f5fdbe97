# like: right_graph
# %% fuse-conv-bn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def refuse(bn, channels):
    if bn.training or bn.running_mean is None or bn.num_features != channels:
        raise ValueError("no")


def fuse_conv_bn(conv, bn):
    refuse(bn, conv.out_channels)
    return fuse_conv_bn_eval(conv.eval(), bn, conv.transposed)

# %% fuse
def fuse(model, example):
    from torch.fx.experimental import optimization

    return optimization.fuse(model)
