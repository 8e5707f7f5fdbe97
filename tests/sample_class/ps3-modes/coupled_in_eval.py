# like: right_direct
# %% batch-norm-eval-backward
def batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5):
    dims = (0, *range(2, x.dim()))
    view = (1, -1) + (1,) * (x.dim() - 2)
    invstd = 1 / torch.sqrt(running_var + eps)
    x_hat = (x - running_mean.view(view)) * invstd.view(view)
    # the formula from the lecture
    d = dy - dy.mean(dims, keepdim=True) - x_hat * (dy * x_hat).mean(dims, keepdim=True)
    return d * (weight * invstd).view(view), (dy * x_hat).sum(dims), dy.sum(dims)
