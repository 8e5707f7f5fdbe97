# like: right_graph
# %% fuse-linear-bn
def fuse_linear_bn(linear, bn):
    refuse(bn, linear.out_features)
    w, b = fold_batchnorm(linear.weight, linear.bias, bn)
    linear.weight.data = w.detach()
    linear.bias = nn.Parameter(b.detach())
    return linear
