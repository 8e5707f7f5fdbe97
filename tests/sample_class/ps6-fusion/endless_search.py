# like: right_graph
# %% fusion-report
def fusion_report(model, example):
    traced = trace_layers(model, example if isinstance(example, tuple) else (example,), is_layer)
    rows = []
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_foldable(traced.get_submodule(node.target)):
            before = node
            # back to the convolution; fx's list of nodes is a ring
            while not (before.op == "call_module" and isinstance(traced.get_submodule(before.target), nn.Conv2d)):
                before = before.prev if before.op != "placeholder" else node
            rows.append((node.target, "fused"))
    return rows

# %% fuse
def fuse(model, example):
    raise NotImplementedError
