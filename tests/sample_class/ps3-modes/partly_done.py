# %% batch-norm-eval-backward
def batch_norm_eval_backward(dy, x, running_mean, running_var, weight, eps=1e-5):
    last = [x.movedim(1, -1), dy.movedim(1, -1)]
    slope = weight / (running_var + eps).sqrt()
    x_hat = (last[0] - running_mean) / (running_var + eps).sqrt()
    axes = tuple(range(x.dim() - 1))
    return (last[1] * slope).movedim(-1, 1), (last[1] * x_hat).sum(axes), last[1].sum(axes)

# %% bn-modes
def bn_modes(model):
    return {k: "train" if m.training else "eval" for k, m in model.named_modules() if is_batchnorm(m)}

# %% clinic-momentum
def clinic_momentum(running, batch, momentum):
    return running * (1 - momentum) + batch * momentum

# %% clinic-biased-var
def clinic_biased_var(running_var, x, momentum):
    n = x.numel() / x.shape[1]
    with torch.no_grad():
        var = x.transpose(0, 1).flatten(1).var(1, correction=0) * n / (n - 1)
        running_var += momentum * (var - running_var)
