# %% fold-batchnorm
def fold_batchnorm(weight, bias, bn, transposed=False, groups=1):
    mean, var = bn.running_mean.double(), bn.running_var.double()
    gamma = torch.ones_like(mean) if bn.weight is None else bn.weight.double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.double()
    b = torch.zeros_like(mean) if bias is None else bias.double()
    s = gamma / torch.sqrt(var + bn.eps)
    new_bias = beta + (b - mean) * s
    if transposed:
        # (C_in, C_out / groups, ...): the rows of a group all take that group's factors
        factors = s.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
        factors = factors.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    else:
        factors = s.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * factors).to(weight.dtype), new_bias.to((weight if bias is None else bias).dtype)

# %% fuse-conv-bn
def refuse(bn, channels):
    if bn.training:
        raise ValueError("bn is in training mode")
    if bn.running_mean is None:
        raise ValueError("bn has no running statistics")
    if bn.num_features != channels:
        raise ValueError(f"bn has {bn.num_features} channels, not {channels}")


def fuse_conv_bn(conv, bn):
    refuse(bn, conv.out_channels)
    new = copy.deepcopy(conv)
    with torch.no_grad():
        w, b = fold_batchnorm(conv.weight, conv.bias, bn, conv.transposed, conv.groups)
    new.weight, new.bias = nn.Parameter(w), nn.Parameter(b)
    return new

# %% fuse-linear-bn
def fuse_linear_bn(linear, bn):
    refuse(bn, linear.out_features)
    new = copy.deepcopy(linear)
    with torch.no_grad():
        w, b = fold_batchnorm(linear.weight, linear.bias, bn)
    new.weight, new.bias = nn.Parameter(w), nn.Parameter(b)
    return new

# %% fusion-report
def why_not(node, traced, calls, env):
    bn = traced.get_submodule(node.target)
    if bn.training:
        return "training mode"
    if bn.running_mean is None:
        return "no running statistics"
    if calls[node.target] > 1:
        return "called more than once"
    before = node.all_input_nodes[0]
    if before.op != "call_module":
        return f"comes after {before.name}"
    layer = traced.get_submodule(before.target)
    if not isinstance(layer, CONVOLUTIONS + (nn.Linear,)):
        return f"comes after a {type(layer).__name__}"
    if calls[before.target] > 1:
        return "the layer before is called more than once"
    if len(before.users) > 1:
        return "what the layer before gives is needed elsewhere"
    if isinstance(layer, nn.Linear) and env[before].dim() != 2:
        return "linear layer on a sequence"
    return ""


def fusion_report(model, example):
    args = example if isinstance(example, tuple) else (example,)
    traced = trace_layers(model, args, is_layer)
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    interpreter = fx.Interpreter(traced, garbage_collect_values=False)
    with reproducible():
        interpreter.run(*args)
    rows = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_foldable(traced.get_submodule(node.target)):
            rows[node.target] = why_not(node, traced, calls, interpreter.env) or "fused"
    for name, module in model.named_modules():
        if is_foldable(module) and name not in rows:
            rows[name] = "not used by the forward pass"
    return list(rows.items())

# %% fuse
def fuse(model, example):
    args = example if isinstance(example, tuple) else (example,)
    report = dict(fusion_report(model, example))
    new = trace_layers(model, args, is_layer)
    for node in list(new.graph.nodes):
        if node.op == "call_module" and report.get(node.target) == "fused":
            before = node.all_input_nodes[0]
            layer, bn = new.get_submodule(before.target), new.get_submodule(node.target)
            fused = fuse_linear_bn(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn(layer, bn)
            new.set_submodule(before.target, fused)
            node.replace_all_uses_with(before)
            new.graph.erase_node(node)
    new.recompile()
    with reproducible():
        want = twin(model)(*args)
    with reproducible():
        got = twin(new)(*args)
    if difference(got, want) > TOLERANCE:
        raise ValueError("the fused model computes something else")
    return new
