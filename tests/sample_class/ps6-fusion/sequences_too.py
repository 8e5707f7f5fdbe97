# like: right_graph
# %% fusion-report
def why_not(node, traced, calls, env):
    bn, before = traced.get_submodule(node.target), node.all_input_nodes[0]
    layer = traced.get_submodule(before.target) if before.op == "call_module" else None
    checks = [
        (bn.training, "training mode"),
        (bn.running_mean is None, "no statistics"),
        (not isinstance(layer, (nn.Linear, *CONVOLUTIONS)), "nothing before it that could take it"),
        (calls[node.target] > 1 or calls[before.target] > 1, "called twice"),
        (len(before.users) > 1, "output needed elsewhere"),
    ]
    return next((reason for bad, reason in checks if bad), "")


def fusion_report(model, example):
    args = example if isinstance(example, tuple) else (example,)
    traced = trace_layers(model, args, is_layer)
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    rows = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_foldable(traced.get_submodule(node.target)):
            rows[node.target] = why_not(node, traced, calls, None) or "fused"
    rows.update({n: "unused" for n, m in model.named_modules() if is_foldable(m) and n not in rows})
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
            new.set_submodule(before.target, (fuse_linear_bn if isinstance(layer, nn.Linear) else fuse_conv_bn)(layer, bn))
            node.replace_all_uses_with(before)
            new.graph.erase_node(node)
    new.recompile()
    return new
