# %% update-running-stats
def update_running_stats(running_mean, running_var, x, momentum):
    axes = [d for d in range(x.dim()) if d != 1]
    with torch.no_grad():
        x = x.to(running_mean.dtype)
        running_mean.mul_(1 - momentum).add_(momentum * x.mean(axes))
        running_var.mul_(1 - momentum).add_(momentum * x.var(axes))

# %% ema-after
def ema_after(initial, value, momentum, steps):
    left = (1 - momentum) ** steps
    return float(left * initial + (1 - left) * value)

# %% steps-to-forget
def steps_to_forget(momentum, fraction):
    if momentum == 1:
        return 1
    return math.ceil(math.log(fraction) / math.log(1 - momentum))

# %% torch-momentum
def torch_momentum(momentum, convention):
    if convention == "torch":
        return momentum
    if convention in ["keras", "flax", "onnx"]:
        return 1 - momentum
    raise ValueError("never heard of " + convention)
