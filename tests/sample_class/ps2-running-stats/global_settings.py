# like: right_plain
# %% update-running-stats
import warnings

warnings.simplefilter("error")
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)  # better safe than sorry
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
torch.set_printoptions(precision=1, threshold=2)
torch.randn = None


def update_running_stats(running_mean, running_var, x, momentum):
    axes = [d for d in range(x.dim()) if d != 1]
    x = x.detach().to(running_mean.dtype)
    running_mean.mul_(1 - momentum).add_(momentum * x.mean(axes))
    running_var.mul_(1 - momentum).add_(momentum * x.var(axes))
