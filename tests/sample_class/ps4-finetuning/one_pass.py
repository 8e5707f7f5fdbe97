# like: right_by_hand
# %% recalibrate
@torch.no_grad()
def recalibrate(model, batches):
    if iter(batches) is batches:
        raise ValueError("a list, please")
    modes = {m: m.training for m in model.modules()}
    model.eval()
    inputs = {}
    layers = [m for m in model.modules() if is_batchnorm(m)]

    def collect(m, args):
        inputs.setdefault(m, []).append(args[0].double().movedim(1, 0).flatten(1))

    handles = [m.register_forward_pre_hook(collect) for m in layers]
    count = 0
    for batch in batches:  # one pass is enough for all layers
        model(batch)
        count += 1
    for handle in handles:
        handle.remove()
    for m, mode in modes.items():
        m.training = mode
    if any(len(seen) > count for seen in inputs.values()):
        raise ValueError("called twice")
    for m, seen in inputs.items():
        x = torch.cat(seen, 1)
        m.running_mean.copy_(x.mean(1))
        m.running_var.copy_(x.var(1))
    return model
