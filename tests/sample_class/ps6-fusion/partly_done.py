# %% fold-batchnorm
def fold_batchnorm(weight, bias, bn, transposed=False, groups=1):
    s = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        s = s * bn.weight.double()
    b = -bn.running_mean.double() if bias is None else bias.double() - bn.running_mean.double()
    b = b * s
    if bn.bias is not None:
        b = b + bn.bias.double()
    if transposed:
        s = s.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, weight.shape[1]).flatten(0, 1)
        s = s.reshape(*s.shape, *[1] * (weight.dim() - 2))
    else:
        s = s.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * s).to(weight.dtype), b.to((weight if bias is None else bias).dtype)

# %% fuse-linear-bn
def fuse_linear_bn(linear, bn):
    if bn.training or bn.running_var is None or len(bn.running_var) != len(linear.weight):
        raise ValueError("these two do not go together")
    fused = copy.deepcopy(linear)
    w, b = fold_batchnorm(linear.weight, linear.bias, bn)
    fused.weight, fused.bias = nn.Parameter(w.detach()), nn.Parameter(b.detach())
    return fused
