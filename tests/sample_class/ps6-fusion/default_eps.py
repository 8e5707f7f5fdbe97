# like: right_graph
# %% fold-batchnorm
EPS = 1e-5


def fold_batchnorm(weight, bias, bn, transposed=False, groups=1):
    mean, var = bn.running_mean.double(), bn.running_var.double()
    gamma = torch.ones_like(mean) if bn.weight is None else bn.weight.double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.double()
    b = torch.zeros_like(mean) if bias is None else bias.double()
    s = gamma * (var + EPS) ** -0.5
    new_bias = beta + (b - mean) * s
    if transposed:
        w = torch.cat([k * f.reshape(1, -1, *[1] * (k.dim() - 2)) for k, f in zip(weight.double().chunk(groups), s.chunk(groups))])
    else:
        w = weight.double() * s.reshape(-1, *[1] * (weight.dim() - 1))
    return w.to(weight.dtype), new_bias.to((weight if bias is None else bias).dtype)
