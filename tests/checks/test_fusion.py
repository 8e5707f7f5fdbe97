"""Problem set 6: what every topic is tested for."""

from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.fusion import RIGHT  # noqa: F401

TOPIC = "fusion"


def _only(condition):
    """`fold_batchnorm` that leaves its other arguments as they are."""
    start = "    if not is_foldable(bn):"
    return [(start, f"    if not ({condition}):\n        return weight, torch.zeros_like(bn.running_mean)\n{start}")]


_SHIFTED = [("fused.weight = nn.Parameter(weight,", "bias = bias + 1\n    fused.weight = nn.Parameter(weight,")]
_FROZEN = [("fused = copy.deepcopy(conv)", "fused = copy.deepcopy(conv.requires_grad_(False))")]
_FROZEN_LINEAR = [("fused = copy.deepcopy(linear)", "fused = copy.deepcopy(linear.requires_grad_(False))")]
_MIXED = [("return fused", "torch.zeros(len(fused.bias)) + fused.bias\n    return fused")]
_NO_GRAD = "    with torch.no_grad():\n"
_ONE_CHANNEL_MORE = "bn.running_mean is not None and len(bn.running_mean) > len({weight}) and bn.weight is None"
_MODULES = ("    run = fx.Interpreter(", "    modules = dict(net.named_modules())\n    run = fx.Interpreter(")
_TWICE = "if calls[source.target] > 1:"
_NOTHING = "bn.running_mean is None and bn.weight is None and not bn.training"


def _before_folding(*lines):
    """The edit of `fuse_conv_bn` and `fuse_linear_bn` that does something first."""
    return [(_NO_GRAD, "".join(f"    {line}\n" for line in lines) + _NO_GRAD)]


def _given_a_bias(layer):
    """The edit that registers a bias on a layer without one."""
    return _before_folding(
        f"if {layer}.bias is None and len({layer}.weight) == bn.num_features:",
        f"    {layer}.bias = nn.Parameter(torch.zeros_like(bn.running_mean))",
    )


def _refused_otherwise(condition, layer):
    """The edit that raises another error under a condition."""
    old = f"    expect_plain({layer}, "
    return [(old, f"    if {condition}:\n        raise RuntimeError\n{old}")]


_ON_THE_CPU = [("return fused", "return fused.to_empty(device='cpu') if fused.weight.is_meta else fused")]
CLAUSES = [
    ("fold_batchnorm", "the slope multiplies the weight", "fold_into_linear: weight", "gamma_forgotten"),
    ("fold_batchnorm", "γ with its sign", "fold_into_linear: weight", "gamma_absolute"),
    ("fold_batchnorm", "the shift moves the bias", "fold_into_linear: bias", "mean_added"),
    ("fold_batchnorm", "the layer's own eps, inside the root", "fold_into_linear: weight", "eps_outside_root"),
    (
        "fold_batchnorm",
        "an ordinary convolution's groups change nothing",
        "fold_into_convolution",
        "input_channels_scaled",
    ),
    ("fold_batchnorm", "1d, 2d and 3d", "fold_into_convolution: weight in 3d", _only("weight.dim() < 5")),
    ("fold_batchnorm", "no bias too", "fold_without_bias", "bias_required"),
    ("fold_batchnorm", "a bias comes back even so", "fold_without_bias", "no_bias_stays_none"),
    ("fold_batchnorm", "affine=False too", "fold_without_affine", "affine_required"),
    (
        "fold_batchnorm",
        "affine=False and no bias",
        "fold_without_affine: bias and no bias",
        [
            (
                "shift = -bn.running_mean.double() * scale",
                "shift = -bn.running_mean.double() * scale * (bias is not None)",
            )
        ],
    ),
    ("fold_batchnorm", "transposed", "fold_into_transposed", "transposed_as_ordinary"),
    (
        "fold_batchnorm",
        "transposed: the flag says so, not the sizes",
        "fold_into_transposed: weight in 2d",
        "transposed_guessed",
    ),
    (
        "fold_batchnorm",
        "not transposed: the flag says so, not the sizes",
        "fold_into_linear: weight",
        [("if transposed:", "if transposed or weight.shape[1] == channels:")],
    ),
    (
        "fold_batchnorm",
        "transposed: 1d, 2d and 3d",
        "fold_into_transposed: weight in 3d",
        _only("weight.dim() < 5 or not transposed"),
    ),
    (
        "fold_batchnorm",
        "transposed with groups",
        "fold_into_transposed_with_groups: weight in 1d",
        "groups_tiled",
    ),
    (
        "fold_batchnorm",
        "transposed with groups: 1d, 2d and 3d",
        "fold_into_transposed_with_groups: weight in 3d",
        [("weight.shape[1], *kernel)", "weight.shape[1], *kernel if groups == 1 else (1,))")],
    ),
    (
        "fold_batchnorm",
        "transposed, and nothing that may be missing",
        "fold_into_transposed_with_groups: bias without bias, gamma and beta",
        _only("bias is not None or not transposed"),
    ),
    (
        "fold_batchnorm",
        "transposed before groups",
        "fold_into_transposed_with_groups",
        [("transposed: bool = False, groups: int = 1", "groups: int = 1, transposed: bool = False")],
    ),
    ("fold_batchnorm", "computed in float64", "fold_large_bias: bias", "computed_in_own_dtype"),
    ("fold_batchnorm", "β, and it is large", "fold_large_bias: bias, roughly", "beta_forgotten"),
    *(
        ("fold_batchnorm", f"computed in float64: {words}", "fold_large_bias: bias", [change])
        for words, change in {
            "var + eps": ("(bn.running_var.double() + bn.eps)", "(bn.running_var + bn.eps).double()"),
            "the root": (
                "(bn.running_var.double() + bn.eps).rsqrt()",
                "(bn.running_var + bn.eps).rsqrt().double()",
            ),
            "the slope": ("shift = -bn.running_mean", "scale = scale.float()\n    shift = -bn.running_mean"),
            "the sum": (
                "    if bn.bias is not None:",
                "    shift = shift.to(weight.dtype).double()\n    if bn.bias is not None:",
            ),
        }.items()
    ),
    (
        "fold_batchnorm",
        "rounded once: slope of the bias",
        "fold_in_half_precision: bias of float16",
        "slope_rounded",
    ),
    (
        "fold_batchnorm",
        "rounded once: the slope of the weight",
        "fold_in_half_precision: weight of float16 with a tiny slope",
        [("(weight.double() * wide).to(weight.dtype)", "weight * wide.to(weight.dtype)")],
    ),
    ("fold_batchnorm", "statistics as given", "fold_in_half_precision: bias of float16", "statistics_in_half"),
    (
        "fold_batchnorm",
        "weight from float64, in half precision",
        "fold_in_half_precision: weight of bfloat16",
        [("if bn.weight is not None:", "if bn.weight is not None and weight.dtype.itemsize > 2:")],
    ),
    (
        "fold_batchnorm",
        "weight from float64",
        "fold_large_bias: weight",
        [("if bn.weight is not None:", "if bn.weight is not None and weight.dtype != torch.float32:")],
    ),
    ("fold_batchnorm", "cast back: weight", "fold_keeps_dtypes: dtype of weight, float16", "float64_returned"),
    (
        "fold_batchnorm",
        "cast back: a bias to its own dtype, not the weight's",
        "fold_keeps_dtypes: dtype of a float32 bias beside a weight in float16",
        "bias_in_weights_dtype",
    ),
    ("fold_batchnorm", "cast back: bias", "fold_keeps_dtypes: dtype of bias, bfloat16", "promoted"),
    (
        "fold_batchnorm",
        "cast back: without gamma and beta",
        "fold_keeps_dtypes: dtype of weight without gamma and beta, float16",
        [
            (
                "(weight.double() * wide).to(weight.dtype)",
                "(weight.double() * wide).to(weight.dtype if bn.weight is not None else wide.dtype)",
            )
        ],
    ),
    (
        "fold_batchnorm",
        "cast back: transposed",
        "fold_keeps_dtypes: dtype of weight of a transposed one, bfloat16",
        [
            (
                "(weight.double() * wide).to(weight.dtype)",
                "(weight.double() * wide).to(wide.dtype if transposed else weight.dtype)",
            )
        ],
    ),
    (
        "fold_batchnorm",
        "inputs stay: a layer without gamma and beta",
        "fold_keeps_dtypes: inputs changed",
        [
            (
                "    scale = (bn",
                "    if bn.weight is None:\n        bn.weight = nn.Parameter(torch.ones_like(bn.running_var))\n"
                "    scale = (bn",
            )
        ],
    ),
    (
        "fold_batchnorm",
        "a new bias has the weight's dtype",
        "fold_keeps_dtypes: dtype of the new bias where there was none, float16",
        [("weight.dtype if bias is None", "torch.float32 if bias is None")],
    ),
    ("fold_batchnorm", "inputs stay: weight", "fold_keeps_dtypes: inputs changed", "weight_overwritten"),
    ("fold_batchnorm", "inputs stay: layer", "fold_keeps_dtypes: inputs changed", "statistics_overwritten"),
    (
        "fold_batchnorm",
        "cast back: float64 stays",
        "fold_keeps_dtypes: dtype of weight, float64",
        [
            ("(weight.double() * wide).to(weight.dtype)", "(weight.double() * wide).float()"),
            ("shift.to(weight.dtype if bias is None else bias.dtype)", "shift.float()"),
        ],
    ),
    (
        "fold_batchnorm",
        "inputs stay, in float64 too",
        "fold_keeps_dtypes: inputs changed",
        [("(bn.running_var.double() + bn.eps)", "bn.running_var.double().add_(bn.eps)")],
    ),
    ("fuse_conv_bn", "1d", "conv_1d: y", "bias_not_moved"),
    ("fuse_conv_bn", "2d, no bias", "conv_2d_without_some: y without bias", "no_bias_stays_none"),
    ("fuse_conv_bn", "affine=False", "conv_2d_without_some: y without affine", _SHIFTED),
    ("fuse_conv_bn", "affine=False, no bias", "conv_2d_without_some", "affine_required"),
    (
        "fuse_conv_bn",
        "one layer comes back, whatever is missing",
        "conv_2d_without_some: layers in the result without bias affine",
        "not_fused",
    ),
    ("fuse_conv_bn", "3d", "conv_3d: y", "weight_not_scaled"),
    ("fuse_conv_bn", "one layer comes back", "conv_1d: layers in the result", "not_fused"),
    ("fuse_conv_bn", "stride kept", "conv_stride_and_dilation: y in 2d", "stride_dropped"),
    ("fuse_conv_bn", "dilation kept", "conv_stride_and_dilation: y in 3d", "dilation_dropped"),
    ("fuse_conv_bn", "padding kept", "conv_padding_mode: y, padding same, zeros", "padding_dropped"),
    (
        "fuse_conv_bn",
        "padding kept: same, whatever the dilation",
        "conv_padding_mode: y, padding same, zeros",
        [("return fused", "fused.padding = 1 if conv.padding == 'same' else conv.padding\n    return fused")],
    ),
    ("fuse_conv_bn", "padding_mode kept", "conv_padding_mode: y, padding 1, reflect", "padding_mode_dropped"),
    (
        "fuse_conv_bn",
        "padding_mode kept: each",
        "conv_padding_mode: y, padding (2, 1), circular",
        [("return fused", "fused.padding_mode = conv.padding_mode.replace('circular', 'reflect')\n    return fused")],
    ),
    *(
        (
            "fuse_conv_bn",
            f"padding_mode kept: {rank}d",
            f"conv_padding_mode: y, padding 1, {mode} in {rank}d",
            [
                (
                    "return fused",
                    f"if conv.weight.dim() == {rank + 2}:\n        fused.padding_mode = 'zeros'\n    return fused",
                )
            ],
        )
        for rank, mode in {1: "circular", 3: "replicate"}.items()
    ),
    *(
        (
            "fuse_conv_bn",
            f"the convolution's own mode makes no difference: {mode}",
            "conv_2d_without_some",
            [("if bn.training:", f"if bn.training or conv.training is {mode == 'training'}:")],
        )
        for mode in ("training", "eval")
    ),
    ("fuse_conv_bn", "groups kept", "conv_groups: y, one channel each", "groups_dropped"),
    ("fuse_conv_bn", "transposed", "conv_transposed: y in 2d", "transposed_not_passed"),
    ("fuse_conv_bn", "output padding kept", "conv_transposed: y in 1d", "output_padding_dropped"),
    (
        "fuse_conv_bn",
        "output padding kept, axis by axis",
        "conv_transposed: y in 2d",
        [
            (
                "return fused",
                "if conv.transposed:\n"
                "        fused.output_padding = conv.output_padding[:1] * len(conv.stride)\n    return fused",
            )
        ],
    ),
    *(
        (
            "fuse_conv_bn",
            f"transposed, dilation kept: {rank}d",
            f"conv_transposed: y in {rank}d",
            [
                (
                    "return fused",
                    f"if conv.weight.dim() == {rank + 2}:\n        fused.dilation = (1,) * {rank}\n    return fused",
                )
            ],
        )
        for rank in (1, 3)
    ),
    ("fuse_conv_bn", "transposed, groups", "conv_transposed_groups: y, without bias", "groups_not_passed"),
    *(
        (
            "fuse_conv_bn",
            f"transposed, groups: {rank}d",
            f"conv_transposed_groups: y in {rank}d",
            [("if bn.training:", f"if bn.training or (conv.groups > 1 and conv.kernel_size == (2,) * {rank}):")],
        )
        for rank in (2, 3)
    ),
    ("fuse_conv_bn", "transposed, 3d", "conv_transposed: y in 3d", _SHIFTED),
    ("fuse_conv_bn", "the bias is saved", "conv_layers_untouched: in its state_dict", "bias_no_parameter"),
    ("fuse_conv_bn", "γ with its sign", "conv_1d: y", "gamma_absolute"),
    ("fuse_conv_bn", "inputs not changed", "conv_layers_untouched: inputs changed", "layer_overwritten"),
    ("fuse_conv_bn", "gradients and requires_grad stay", "conv_layers_untouched: inputs changed", _FROZEN),
    (
        "fuse_conv_bn",
        "inputs not changed: no bias registered",
        "conv_layers_untouched: inputs changed, no bias, gamma and beta",
        _given_a_bias("conv"),
    ),
    (
        "fuse_conv_bn",
        "what may be fused is, whatever is missing",
        "conv_layers_untouched: y, no bias, gamma and beta",
        [("return fused", "fused.bias.data.mul_(1 + (conv.bias is None))\n    return fused")],
    ),
    (
        "fuse_conv_bn",
        "inputs not changed: transposed",
        "conv_layers_untouched: inputs changed, transposed",
        [("fused = copy.deepcopy(conv)", "fused = conv if conv.transposed else copy.deepcopy(conv)")],
    ),
    ("fuse_conv_bn", "what may be fused is: transposed", "conv_layers_untouched: y, transposed", "groups_not_passed"),
    (
        "fuse_conv_bn",
        "dtype kept",
        "conv_dtype_and_device: dtypes of a layer in bfloat16 without bias",
        "bias_in_float32",
    ),
    (
        "fuse_conv_bn",
        "dtype kept: with a bias",
        "conv_dtype_and_device: dtypes of a layer in float16 with bias",
        "float32_made",
    ),
    (
        "fuse_conv_bn",
        "dtype kept: the convolution's, not the BatchNorm's",
        "conv_dtype_and_device: dtypes of a layer in bfloat16 with bias",
        "dtype_of_the_norm",
    ),
    (
        "fuse_conv_bn",
        "dtype kept: transposed",
        "conv_transposed_dtype_and_device: dtypes of a layer in float16 with bias",
        "float32_made",
    ),
    (
        "fuse_conv_bn",
        "any device: with a bias",
        "conv_dtype_and_device: a pair on another device (meta), with bias",
        _MIXED,
    ),
    (
        "fuse_conv_bn",
        "device kept: with a bias",
        "conv_transposed_dtype_and_device: where the result lives, with bias",
        _ON_THE_CPU,
    ),
    (
        "fuse_conv_bn",
        "device kept",
        "conv_dtype_and_device: a pair on another device (meta), without bias",
        "bias_on_cpu",
    ),
    (
        "fuse_conv_bn",
        "training mode → ValueError",
        "conv_refusals: error for a BatchNorm in training mode",
        "training_accepted",
    ),
    ("fuse_conv_bn", "training mode stays", "conv_refusals: inputs changed", "training_switched_off"),
    (
        "fuse_conv_bn",
        "no running stats → ValueError",
        "conv_refusals: error for a BatchNorm without running statistics",
        "no_statistics_crash",
    ),
    (
        "fuse_conv_bn",
        "channel mismatch → ValueError",
        "conv_refusals: error for one channel less",
        "channels_unchecked",
    ),
    (
        "fuse_conv_bn",
        "channel mismatch, broadcast",
        "conv_refusals: error for a single channel",
        "channels_unchecked",
    ),
    (
        "fuse_conv_bn",
        "training mode and no running stats → ValueError",
        "conv_refusals: error for a BatchNorm in training mode and without them",
        "no_statistics_crash",
    ),
    (
        "fuse_conv_bn",
        "no running stats → ValueError, without gamma and beta too",
        "conv_refusals: error for a BatchNorm without them, gamma and beta",
        _refused_otherwise(_NOTHING, "conv"),
    ),
    (
        "fuse_conv_bn",
        "channel mismatch → ValueError, without gamma and beta too",
        "conv_refusals: error for one channel more, without gamma and beta",
        _refused_otherwise(_ONE_CHANNEL_MORE.format(weight="conv.weight"), "conv"),
    ),
    (
        "fuse_conv_bn",
        "channel mismatch, transposed",
        "conv_transposed_refusals: error for as many channels as axis 1 of the weight is long",
        [
            (
                "    with torch.no_grad():\n",
                "    if bn.running_mean is not None and len(bn.running_mean) == conv.weight.shape[1]:\n"
                "        return conv\n    with torch.no_grad():\n",
            )
        ],
    ),
    ("fuse_conv_bn", "what may be fused is", "conv_transposed_refusals: y", "weight_not_scaled"),
    ("fuse_linear_bn", "the weight's outputs are scaled", "linear_with_bias: y", "input_features_scaled"),
    ("fuse_linear_bn", "one layer comes back", "linear_with_bias: layers in the result", "not_fused"),
    ("fuse_linear_bn", "no bias", "linear_without_some: y without bias", "no_bias_stays_none"),
    ("fuse_linear_bn", "affine=False", "linear_without_some: y without affine", "bias_not_moved"),
    ("fuse_linear_bn", "affine=False, no bias", "linear_without_some", "affine_required"),
    ("fuse_linear_bn", "the bias moves", "linear_layers_untouched: y", "bias_not_moved"),
    ("fuse_linear_bn", "γ with its sign", "linear_with_bias: y", "gamma_absolute"),
    ("fuse_linear_bn", "the bias is saved", "linear_layers_untouched: in its state_dict", "bias_no_parameter"),
    ("fuse_linear_bn", "what may be fused is", "linear_refusals: y", "bias_not_moved"),
    ("fuse_linear_bn", "gradients and requires_grad stay", "linear_layers_untouched: inputs changed", _FROZEN_LINEAR),
    (
        "fuse_linear_bn",
        "inputs not changed: no bias registered",
        "linear_layers_untouched: inputs changed, no bias, gamma and beta",
        _given_a_bias("linear"),
    ),
    (
        "fuse_linear_bn",
        "what may be fused is, whatever is missing",
        "linear_layers_untouched: y, no bias, gamma and beta",
        [("return fused", "fused.bias.data.mul_(1 + (linear.bias is None))\n    return fused")],
    ),
    ("fuse_linear_bn", "inputs not changed", "linear_layers_untouched: inputs changed", "layer_overwritten"),
    (
        "fuse_linear_bn",
        "dtype kept",
        "linear_dtype_and_device: dtypes of a layer in float16 without bias",
        "bias_in_float32",
    ),
    (
        "fuse_linear_bn",
        "dtype kept: with a bias",
        "linear_dtype_and_device: dtypes of a layer in bfloat16 with bias",
        "float32_made",
    ),
    (
        "fuse_linear_bn",
        "dtype kept: the linear layer's, not the BatchNorm's",
        "linear_dtype_and_device: dtypes of a layer in float16 without bias",
        "dtype_of_the_norm",
    ),
    (
        "fuse_linear_bn",
        "any device: with a bias",
        "linear_dtype_and_device: a pair on another device (meta), with bias",
        _MIXED,
    ),
    (
        "fuse_linear_bn",
        "device kept: with a bias",
        "linear_dtype_and_device: where the result lives, with bias",
        _ON_THE_CPU,
    ),
    (
        "fuse_linear_bn",
        "device kept",
        "linear_dtype_and_device: a pair on another device (meta), without bias",
        "bias_on_cpu",
    ),
    (
        "fuse_linear_bn",
        "training mode → ValueError",
        "linear_refusals: error for a BatchNorm in training mode",
        "training_accepted",
    ),
    ("fuse_linear_bn", "training mode stays", "linear_refusals: inputs changed", "training_switched_off"),
    (
        "fuse_linear_bn",
        "no running stats → ValueError",
        "linear_refusals: error for a BatchNorm without running statistics",
        "no_statistics_crash",
    ),
    (
        "fuse_linear_bn",
        "channel mismatch → ValueError",
        "linear_refusals: error for one channel more",
        "channels_unchecked",
    ),
    (
        "fuse_linear_bn",
        "channel mismatch, broadcast",
        "linear_refusals: error for a single channel",
        "channels_unchecked",
    ),
    (
        "fuse_linear_bn",
        "training mode and no running stats → ValueError",
        "linear_refusals: error for a BatchNorm in training mode and without them",
        "no_statistics_crash",
    ),
    (
        "fuse_linear_bn",
        "no running stats → ValueError, without gamma and beta too",
        "linear_refusals: error for a BatchNorm without them, gamma and beta",
        _refused_otherwise(_NOTHING, "linear"),
    ),
    (
        "fuse_linear_bn",
        "channel mismatch → ValueError, without gamma and beta too",
        "linear_refusals: error for one channel more, without gamma and beta",
        _refused_otherwise(_ONE_CHANNEL_MORE.format(weight="linear.weight"), "linear"),
    ),
    ("fusion_report", "fused: conv", "report_of_legal_pairs: fused layers", "registered_neighbours"),
    ("fusion_report", "fused: transposed", "report_of_legal_pairs: fused layers", "transposed_left"),
    ("fusion_report", "fused: 1d and 3d", "report_of_legal_pairs: fused layers", "maps_only"),
    (
        "fusion_report",
        "fused: in float32",
        "report_in_float32: fused layers",
        [("gap <= TOLERANCE", "torch.equal(fused(*args), bn(layer(*args)))")],
    ),
    ("fusion_report", "fused: linear on 2-D", "report_of_legal_pairs: fused layers", "linear_left"),
    (
        "fusion_report",
        "fused: linear with a bias",
        "report_in_float32: fused layers",
        [
            (
                _TWICE,
                "if source.target.endswith('fc') and layer.bias is not None:\n"
                f"            return 'a bias'\n        {_TWICE}",
            )
        ],
    ),
    (
        "fusion_report",
        "fused: a pair without a parent of its own",
        "report_of_legal_pairs: fused layers of a single pair",
        [(_TWICE, f"if '.' not in node.target:\n            return 'no parent'\n        {_TWICE}")],
    ),
    (
        "fusion_report",
        "fused: whatever is trained",
        "report_of_legal_pairs: fused (1) or left (0), row by row of a single pair",
        [(_TWICE, f"if not layer.weight.requires_grad:\n            return 'not trained'\n        {_TWICE}")],
    ),
    (
        "fusion_report",
        "qualified names: of a pair without a parent",
        "report_of_legal_pairs: layers in the report of a single pair",
        [("return list(rows.items())", "return [(f'model.{name}', reason) for name, reason in rows.items()]")],
    ),
    ("fusion_report", "qualified names", "report_of_legal_pairs: layers in the report", "short_names"),
    ("fusion_report", "in call order", "report_of_legal_pairs: layers in the report", "registration_order"),
    ("fusion_report", "a list of pairs", "report_of_legal_pairs", "dictionary_returned"),
    ("fusion_report", "fused or a reason", "report_of_legal_pairs: verdicts in words", "truth_values"),
    ("fusion_report", "a row per BN", "report_of_illegal_pairs: layers in the report", "fused_only"),
    ("fusion_report", "also for one not called", "report_of_illegal_pairs: layers in the report", "uncalled_forgotten"),
    ("fusion_report", "training mode left", "report_of_illegal_pairs: fused layers", "training_mode_ignored"),
    ("fusion_report", "no running stats left", "report_of_illegal_pairs: fused layers", "no_statistics_ignored"),
    ("fusion_report", "across an activation left", "report_of_illegal_pairs: fused layers", "activation_passed"),
    (
        "fusion_report",
        "across an activation left: a method",
        "report_of_illegal_pairs: fused layers",
        [
            (
                "[source] = node.all_input_nodes",
                "[source] = node.all_input_nodes\n        if source.op == 'call_method':\n            return 'fused'",
            )
        ],
    ),
    (
        "fusion_report",
        "across an activation left: a module",
        "report_of_illegal_pairs: fused layers",
        [
            (
                "[source] = node.all_input_nodes",
                "[source] = node.all_input_nodes\n        if 'act' in str(source.target):\n            return 'fused'",
            )
        ],
    ),
    (
        "fusion_report",
        "a BN at the beginning left",
        "report_of_illegal_pairs",
        [("if len(node.all_input_nodes) != 1:", "net.get_submodule(str(node.args[0].target))\n        if False:")],
    ),
    ("fusion_report", "BN→conv left", "report_of_illegal_pairs: fused layers", "folded_forwards"),
    (
        "fusion_report",
        "fused: a BN between two convolutions",
        "report_of_legal_pairs: fused layers",
        [
            (
                "        [source] = node.all_input_nodes",
                "        if any(isinstance(modules.get(user.target), CONVOLUTIONS) for user in node.users):\n"
                "            return 'before a convolution'\n        [source] = node.all_input_nodes",
            ),
            _MODULES,
        ],
    ),
    (
        "fusion_report",
        "a row per BN, and for no other norm",
        "report_of_illegal_pairs: layers in the report",
        [
            (
                "        if is_foldable(module):",
                "        if is_foldable(module) or isinstance(module, nn.InstanceNorm2d):",
            )
        ],
    ),
    ("fusion_report", "linear only on 2-D", "report_of_a_sequence: fused layers of sequences", "rank_ignored"),
    (
        "fusion_report",
        "linear only on 2-D: not on 4-D either",
        "report_of_a_sequence: fused layers of rows",
        [
            ("if run.env[source].dim() != rank:", "if run.env[source].dim() == 3 != rank:"),
            ("gap <= TOLERANCE", "gap < 1e9"),
        ],
    ),
    (
        "fusion_report",
        "a layer called twice left",
        "report_of_shared_layers: fused layers",
        "layer_called_twice_ignored",
    ),
    ("fusion_report", "a BN called twice left", "report_of_shared_layers: fused layers", "norm_called_twice_ignored"),
    ("fusion_report", "a pair called several times left", "report_of_shared_layers: fused layers", "pair_called_again"),
    ("fusion_report", "output used elsewhere left", "report_of_shared_layers: fused layers", "users_ignored"),
    (
        "fusion_report",
        "output used elsewhere left: by another BN",
        "report_of_shared_layers: fused layers",
        [
            (
                "if len(source.users) > 1:",
                "if not all(is_foldable(modules.get(user.target)) for user in source.users):",
            ),
            _MODULES,
        ],
    ),
    (
        "fusion_report",
        "output used elsewhere left: by the model's caller",
        "report_of_shared_layers: fused layers where the model returns what comes in",
        "returned_ignored",
    ),
    ("fusion_report", "one row for two calls", "report_of_shared_layers: layers in the report", "row_for_each_call"),
    ("fusion_report", "a tuple of arguments", "report_of_two_arguments", "tuple_not_unpacked"),
    (
        "fusion_report",
        "a tuple of one argument",
        "report_of_one_argument",
        [("if isinstance(example, tuple)", "if isinstance(example, tuple) and len(example) > 1")],
    ),
    (
        "fusion_report",
        "no row without a BN",
        "report_of_one_argument: layers in the report of a model without BatchNorm",
        [("return list(rows.items())", "return list(rows.items()) or [('none', 'no BatchNorm')]")],
    ),
    ("fusion_report", "the BN's own mode", "report_of_two_arguments: fused layers", "mode_of_the_model"),
    ("fusion_report", "the model stays: buffers", "report_of_two_arguments: inputs changed", "model_run"),
    (
        "fusion_report",
        "torch's random numbers stay",
        "report_of_two_arguments: torch's random numbers go on where they were",
        "random_numbers_used",
    ),
    ("fusion_report", "the model stays: hooks", "report_of_two_arguments: inputs changed", "hooks_left"),
    ("fusion_report", "the model stays: modes", "report_of_two_arguments: inputs changed", "model_put_into_eval"),
    (
        "fuse",
        "every legal pair: a norm whose output is used twice",
        "fuse_legal_pairs: BatchNorm calls left",
        "nothing_fused",
    ),
    ("fuse", "every legal pair", "fuse_legal_pairs: BatchNorm calls left", "nothing_fused"),
    ("fuse", "every legal pair: transposed", "fuse_legal_pairs: BatchNorm calls left", "transposed_left"),
    ("fuse", "every legal pair: 1d and 3d", "fuse_legal_pairs: BatchNorm calls left", "maps_only"),
    ("fuse", "every legal pair: in float32", "fuse_in_float32: BatchNorm calls left", "nothing_fused"),
    ("fuse", "every legal pair: linear", "fuse_legal_pairs: BatchNorm calls left", "linear_left"),
    ("fuse", "every legal pair: not in a container", "fuse_legal_pairs: BatchNorm calls left", "sequentials_only"),
    ("fuse", "equals the original", "fuse_legal_pairs: y", "norm_still_applied"),
    ("fuse", "a training BN stays", "fuse_illegal_pairs: y", "training_mode_ignored"),
    ("fuse", "not across an activation", "fuse_illegal_pairs: y", "activation_passed"),
    ("fuse", "not BN→conv", "fuse_illegal_pairs: y", "folded_forwards"),
    ("fuse", "linear only on 2-D", "fuse_a_sequence: y of sequences", "rank_ignored"),
    ("fuse", "linear only on 2-D: not on 4-D either", "fuse_a_sequence: y of rows", "rank_ignored"),
    ("fuse", "a layer called twice stays", "fuse_shared_layers: y", "layer_called_twice_ignored"),
    ("fuse", "a BN called twice stays", "fuse_shared_layers: BatchNorm calls left", "norm_called_twice_ignored"),
    ("fuse", "a pair called several times stays", "fuse_shared_layers: BatchNorm calls left", "pair_called_again"),
    ("fuse", "output used elsewhere", "fuse_shared_layers: y", "users_ignored"),
    (
        "fuse",
        "output used elsewhere: by the model's caller",
        "fuse_shared_layers: y where the model returns what comes in",
        "returned_ignored",
    ),
    ("fuse", "a tuple of arguments", "fuse_two_arguments", "tuple_not_unpacked"),
    ("fuse", "a tuple of one argument", "fuse_with_one_argument", "tuple_not_unpacked"),
    ("fuse", "the BN's own mode", "fuse_two_arguments: BatchNorm calls left", "mode_of_the_model"),
    (
        "fuse",
        "the example stays",
        "fuse_two_arguments: inputs changed",
        [
            (
                "rows = dict(fusion_report(model, example))",
                "rows = dict(fusion_report(model, example))\n    args[0].mul_(2)",
            )
        ],
    ),
    ("fuse", "the model stays: layers", "fuse_two_arguments: inputs changed", "model_changed"),
    ("fuse", "the model stays: buffers", "fuse_two_arguments: inputs changed", "model_run"),
    (
        "fuse",
        "a new model, which shares nothing",
        "fuse_two_arguments: what the new model shares with the given one",
        "layers_shared",
    ),
    ("fuse", "a training BN stays as it was", "fuse_two_arguments: y in eval mode", "result_run"),
    ("fuse", "the model stays: modes", "fuse_two_arguments: inputs changed", "model_put_into_eval"),
    ("fuse", "a module", "fuse_legal_pairs", "report_returned_too"),
]
