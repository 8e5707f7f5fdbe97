# like: right_graph
# %% fuse
def fuse(model, example):
    args = example if isinstance(example, tuple) else (example,)
    new = trace_layers(model, args, is_layer)
    # one after the other, until nothing is left to fuse
    while any(reason == "fused" for _, reason in fusion_report(model, example)):
        report = dict(fusion_report(model, example))
        node = next((n for n in new.graph.nodes if n.op == "call_module" and report.get(n.target) == "fused"), None)
        if node is not None:
            before = node.all_input_nodes[0]
            layer, bn = new.get_submodule(before.target), new.get_submodule(node.target)
            new.set_submodule(before.target, (fuse_linear_bn if isinstance(layer, nn.Linear) else fuse_conv_bn)(layer, bn))
            node.replace_all_uses_with(before)
            new.graph.erase_node(node)
    new.recompile()
    return new
