# like: right_plain
# %% update-running-stats
def update_running_stats(running_mean, running_var, x, momentum):
    axes = (0, *range(2, x.dim()))
    with torch.no_grad():
        x = x.float()
        # running = momentum * running + (1 - momentum) * batch
        running_mean.copy_(momentum * running_mean + (1 - momentum) * x.mean(axes))
        running_var.copy_(momentum * running_var + (1 - momentum) * x.var(axes))

# %% ema-after
def ema_after(initial, value, momentum, steps):
    return value + (initial - value) * momentum**steps
