# like: right_graph
# %% fusion-report
def fusion_report(model, example):
    model.eval()  # fusing is for inference
    args = example if isinstance(example, tuple) else (example,)
    traced = trace_layers(model, args, is_layer)
    calls = Counter(n.target for n in traced.graph.nodes if n.op == "call_module")
    values = fx.Interpreter(traced, garbage_collect_values=False)
    with torch.no_grad():
        values.run(*args)
    rows = []
    for node in traced.graph.nodes:
        if node.op != "call_module" or not is_foldable(traced.get_submodule(node.target)) or node.target in dict(rows):
            continue
        bn, [before] = traced.get_submodule(node.target), node.all_input_nodes
        layer = traced.get_submodule(before.target) if before.op == "call_module" else None
        good = isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and bn.running_mean is not None
        good = good and calls[node.target] == calls[before.target] == len(before.users) == 1
        good = good and (values.env[before].dim() == 2 or not isinstance(layer, nn.Linear))
        rows.append((node.target, "fused" if good else "cannot be fused"))
    done = dict(rows)
    return rows + [(n, "unused") for n, m in model.named_modules() if is_foldable(m) and n not in done]
