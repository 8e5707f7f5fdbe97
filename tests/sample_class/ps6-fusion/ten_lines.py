# like: right_graph
# %% fuse-conv-bn
# from a blog post, with a few more cases
def fuse_conv_bn(conv, bn):
    if bn.training or bn.running_mean is None or bn.num_features != conv.out_channels:
        raise ValueError("cannot be fused")
    more = {"output_padding": conv.output_padding} if conv.transposed else {}
    fused = type(conv)(conv.in_channels, conv.out_channels, kernel_size=conv.kernel_size, stride=conv.stride,
                       padding=conv.padding, dilation=conv.dilation, groups=conv.groups, bias=True, **more)
    fused = fused.to(conv.weight.device).to(conv.weight.dtype)
    w, b = fold_batchnorm(conv.weight.detach(), None if conv.bias is None else conv.bias.detach(), bn, conv.transposed, conv.groups)
    fused.weight.data, fused.bias.data = w, b.detach()
    return fused


def refuse(bn, channels):
    if bn.training or bn.running_mean is None or bn.num_features != channels:
        raise ValueError("cannot be fused")
