# %% fold-batchnorm
import numpy as np


def fold_batchnorm(weight, bias, bn, transposed=False, groups=1):
    def wide(t, otherwise):
        return otherwise if t is None else t.detach().cpu().numpy().astype("float64") if t.dtype != torch.bfloat16 else t.detach().double().cpu().numpy()

    slope = wide(bn.weight, 1.0) / np.sqrt(wide(bn.running_var, None) + bn.eps)
    shift = (wide(bias, 0.0) - wide(bn.running_mean, None)) * slope + wide(bn.bias, 0.0)
    w = wide(weight, None).copy()
    if transposed:
        per_group, rows = w.shape[1], w.shape[0] // groups
        for c in range(len(slope)):
            g, j = c // per_group, c % per_group
            w[g * rows : (g + 1) * rows, j] *= slope[c]
    else:
        for c in range(len(slope)):
            w[c] *= slope[c]
    return torch.from_numpy(w).to(weight.dtype), torch.from_numpy(shift).to((weight if bias is None else bias).dtype)

# %% fuse-conv-bn
def line(bn):
    """Slope and shift of a BatchNorm, from what it does to 0 and 1."""
    stats = [None if t is None else t.double() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)]
    zero = torch.zeros(1, bn.num_features, dtype=torch.float64, device=bn.running_mean.device)
    f = lambda x: nn.functional.batch_norm(x, *stats, False, 0.0, bn.eps)[0]
    return f(zero + 1) - f(zero), f(zero)


def fuse_conv_bn(conv, bn):
    assert isinstance(conv, CONVOLUTIONS)
    if bn.training or not bn.track_running_stats or bn.num_features != conv.out_channels:
        raise ValueError(f"cannot fold {bn} into {conv}")
    options = {k: getattr(conv, k) for k in ("stride", "padding", "dilation", "groups", "padding_mode")}
    if conv.transposed:
        options["output_padding"] = conv.output_padding
    new = type(conv)(conv.in_channels, conv.out_channels, conv.kernel_size, **options,
                     device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        slope, shift = line(bn)
        rest = (1,) * (conv.weight.dim() - 2)
        if conv.transposed:
            parts = [k.double() * s.view(1, -1, *rest) for k, s in zip(conv.weight.chunk(conv.groups), slope.chunk(conv.groups))]
            new.weight.copy_(torch.cat(parts))
        else:
            new.weight.copy_(conv.weight.double() * slope.view(-1, 1, *rest))
        new.bias.copy_(shift if conv.bias is None else shift + slope * conv.bias.double())
    return new

# %% fuse-linear-bn
def fuse_linear_bn(linear, bn):
    if bn.training or not bn.track_running_stats or bn.num_features != linear.out_features:
        raise ValueError(f"cannot fold {bn} into {linear}")
    new = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        slope, shift = line(bn)
        new.weight.copy_((linear.weight.double().T * slope).T)
        new.bias.copy_(shift if linear.bias is None else shift + slope * linear.bias.double())
    return new

# %% fusion-report
from collections import Counter


# No graph: every pair is tried in a copy, and what changes the output was not legal.
def run(model, example):
    with torch.no_grad():
        torch.manual_seed(0)  # every run the same
        return copy.deepcopy(model)(*(example if isinstance(example, tuple) else (example,)))


def called(model, example):
    names, order = {id(m): n for n, m in reversed(list(model.named_modules()))}, []
    hooks = [m.register_forward_hook(lambda m, *_: order.append(names[id(m)])) for m in model.modules()]
    with torch.no_grad():
        model(*(example if isinstance(example, tuple) else (example,)))
    for h in hooks:
        h.remove()
    return Counter(order)


def try_all(model, example):
    now, want, verdicts = copy.deepcopy(model), run(model, example), {}
    order = called(copy.deepcopy(model), example)
    kinds = {n: model.get_submodule(n) for n in order}
    for name in order:
        if not is_foldable(kinds[name]):
            continue
        verdicts[name] = "no layer that could take it"
        if order[name] > 1:
            verdicts[name] = "called more than once"
            continue
        for layer in order:
            if not isinstance(kinds[layer], (nn.Linear, *CONVOLUTIONS)) or order[layer] > 1:
                continue
            attempt = copy.deepcopy(now)
            try:
                f = fuse_linear_bn if isinstance(kinds[layer], nn.Linear) else fuse_conv_bn
                attempt.set_submodule(layer, f(attempt.get_submodule(layer), attempt.get_submodule(name)))
                attempt.set_submodule(name, nn.Identity())
                got = run(attempt, example)
            except (ValueError, RuntimeError) as error:
                verdicts[name] = str(error)
                continue
            if got.shape == want.shape and torch.allclose(got, want, rtol=1e-5, atol=1e-5):
                now, verdicts[name] = attempt, "fused"
                break
    for name, module in model.named_modules():
        if is_foldable(module) and name not in verdicts:
            verdicts[name] = "never called"
    return now, verdicts


def fusion_report(model, example):
    with torch.random.fork_rng():
        return list(try_all(model, example)[1].items())

# %% fuse
def fuse(model, example):
    with torch.random.fork_rng():
        return try_all(model, example)[0]
