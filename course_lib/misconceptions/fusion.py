"""What people get wrong in problem set 6."""

import copy
import functools
from itertools import pairwise

from torch import nn

from course_lib.fusion import CONVOLUTIONS, is_foldable
from course_lib.misconceptions import Misconception, edit, reference

AFFINE = "chapter 6, «In eval mode the layer is affine»"
FOLDING = "chapter 6, «Folding: scale the weight, move the bias»"
EPS = "chapter 6, «Where eps goes this time»"
MISSING = "chapter 6, «A layer without bias, a BatchNorm without gamma and beta»"
AXIS = "chapter 6, «Which axis holds the output channels»"
GROUPS = "chapter 6, «Groups, and transposed convolutions with groups»"
REST = "chapter 6, «Everything else stays the layer's own»"
ROUNDED = "chapter 6, «Computed in float64, rounded once»"
SAME = "chapter 6, «Same device, same dtype, untouched originals»"
TRAINING = "chapter 6, «Training mode, and no running statistics»"
BEFORE = "chapter 6, «BatchNorm before a padded convolution»"
ACROSS = "chapter 6, «Across an activation»"
TWICE = "chapter 6, «Shared layers, layers called twice»"
ELSEWHERE = "chapter 6, «An output that is used elsewhere too»"
SEQUENCES = "chapter 6, «Linear layers on sequences»"
GRAPH = "chapter 6, «The graph says what follows what»"
REPORT = "chapter 6, «A report before the change»"
WHOLE = "chapter 6, «Fusing a whole model»"


def _fold(name, change, hint, read, seen):
    return Misconception("fusion.fold_batchnorm", name, change, hint, read, seen)


def _conv(name, change, hint, read, seen):
    return Misconception("fusion.fuse_conv_bn", name, change, hint, read, seen)


def _linear(name, change, hint, read, seen):
    return Misconception("fusion.fuse_linear_bn", name, change, hint, read, seen)


def _report(name, change, hint, read, seen):
    return Misconception("fusion.fusion_report", name, change, hint, read, seen)


def _fuse(name, change, hint, read, seen):
    return Misconception("fusion.fuse", name, change, hint, read, seen)


def _on(piece, changes, earlier, earlier_changes):
    """A piece, edited by `changes`, that calls an edited earlier piece: mistakes are handed on."""

    @functools.cache
    def made():
        implementation = edit(piece, changes)
        implementation.__globals__[earlier] = edit(f"fusion.{earlier}", earlier_changes)
        return implementation

    return lambda *args, **kwargs: made()(*args, **kwargs)


# --- parts of the reference that several edits touch --------------------------------------------------------------

_INVSTD = "(bn.running_var.double() + bn.eps).rsqrt()"
_GAMMA = "scale = scale * bn.weight.double()"
_MEAN = "-bn.running_mean.double() * scale"
_BIAS = "shift = shift + bias.double() * scale"
_BETA = "shift = shift + bn.bias.double()"
_ROWS = "scale.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)"
_WIDE = "rows.reshape(len(weight), weight.shape[1], *kernel)"
_FOLDED = "(weight.double() * wide).to(weight.dtype)"
_SHIFTED = "shift.to(weight.dtype if bias is None else bias.dtype)"

_COPY = "fused = copy.deepcopy(conv)"
_TRAINING_IF = "if bn.training:"
_TRAINING_ERROR = 'raise ValueError("expected a BatchNorm in eval mode, got one in training mode: call .eval() first")'
_NO_GRAD = "    with torch.no_grad():\n"
_NEW_BIAS = "fused.bias = nn.Parameter(bias, (conv.weight if conv.bias is None else conv.bias).requires_grad)"
_NEW_LINEAR_BIAS = (
    "fused.bias = nn.Parameter(bias, (linear.weight if linear.bias is None else linear.bias).requires_grad)"
)

_ARGS = "args = example if isinstance(example, tuple) else (example,)"
_ROW_LIST = "return list(rows.items())"
_KINDS = "isinstance(layer, (nn.Linear, *CONVOLUTIONS))"
_SOURCE = "[source] = node.all_input_nodes"
_UNCHECKED = ("if difference(got, want) > TOLERANCE:", "if False:")


def _anew(without):
    """The edit that builds the convolution from a list of its arguments, with one of them missing."""
    names = ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
    listed = tuple(name for name in names if name != without)
    new = (
        "fused = type(conv)(conv.in_channels, conv.out_channels, conv.kernel_size,\n"
        f"        **{{name: getattr(conv, name) for name in {listed!r}\n"
        "           if name != 'output_padding' or conv.transposed})"
    )
    return ((_COPY, new),)


def _other_channels(outputs):
    """The edit that multiplies whatever comes, as broadcasting allows."""
    return (
        (
            _NO_GRAD,
            f"    if bn.running_mean is not None and len(bn.running_mean) != {outputs}:\n"
            f"        torch.ones({outputs}) * bn.running_mean.cpu()\n"
            f"        return copy.deepcopy({outputs.partition('.')[0]})\n" + _NO_GRAD,
        ),
    )


# fmt: off
_EPS_FORGOTTEN = ((_INVSTD, "bn.running_var.double().rsqrt()"),)
_EPS_IGNORED = ((_INVSTD, "(bn.running_var.double() + 1e-5).rsqrt()"),)
_EPS_OUTSIDE = ((_INVSTD, "1 / (bn.running_var.double().sqrt() + bn.eps)"),)
_NO_GAMMA = ((_GAMMA, "pass"),)
_GAMMA_ABSOLUTE = ((_GAMMA, "scale = scale * bn.weight.double().abs()"),)
_NO_BETA = ((_BETA, "pass"),)
_BIAS_UNSCALED = ((_BIAS, "shift = shift + bias.double()"),)
_BIAS_DROPPED = ((_BIAS, "pass"),)
_AFFINE_REQUIRED = (("if bn.weight is not None:", "if True:"),)
_BIAS_REQUIRED = (("if bias is not None:", "if True:"),)
_GROUPS_TILED = ((_ROWS, "scale.view(1, groups, -1).expand(len(weight) // groups, -1, -1)"),)

_HANDED_ON = {
    "eps_forgotten": (
        _EPS_FORGOTTEN,
        "The slope is γ over the root of the variance alone: BatchNorm adds its eps before it takes the root.",
        EPS, "formulas quoted without their small print",
    ),
    "eps_ignored": (
        _EPS_IGNORED,
        "The eps used here is the default 1e-5, not the layer's own: many pretrained models have another.",
        EPS, "a constant copied from the documentation",
    ),
    "eps_outside_root": (
        _EPS_OUTSIDE,
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        EPS, "std + eps",
    ),
    "gamma_forgotten": (
        _NO_GAMMA,
        "γ is not in the slope: besides dividing by the standard deviation, the layer multiplies by its weight.",
        FOLDING, "derivations that stop at x̂",
    ),
    "gamma_absolute": (
        _GAMMA_ABSOLUTE,
        "γ has lost its sign: it may be negative, and then the layer turns the channel over.",
        AFFINE, "√(γ² / (var + eps)), and variants of BatchNorm that use |γ|",
    ),
    "beta_forgotten": (
        _NO_BETA,
        "β is not in the new bias: the layer adds it at the end.",
        FOLDING, "derivations that stop after the scale",
    ),
    "bias_not_scaled": (
        _BIAS_UNSCALED,
        "The old bias is taken over as it was: it goes through the normalisation too, so it is scaled like the weight.",
        FOLDING, "recipes written for layers without a bias",
    ),
    "bias_dropped": (
        _BIAS_DROPPED,
        "The old bias is lost: BatchNorm subtracts its running mean, which was measured with that bias in it.",
        FOLDING, "recipes written for layers without a bias",
    ),
    "affine_required": (
        _AFFINE_REQUIRED,
        "A BatchNorm made with affine=False has no γ and β, and the code trips over them: they count as 1 and 0.",
        MISSING, "bn.weight used unasked",
    ),
    "bias_required": (
        _BIAS_REQUIRED,
        "A layer made without a bias has None in its place, and the code trips over it: it counts as 0.",
        MISSING, "conv.bias used unasked, while most convolutions before BatchNorm have none",
    ),
    "groups_tiled": (
        _GROUPS_TILED,
        "The groups' factors alternate from one input channel to the next: the channels of a group stand together.",
        GROUPS, "repeat where repeat_interleave is meant",
    ),
}


def _handed_on(make, piece, *names):
    """Mistakes in `fold_batchnorm` as they show in a piece that calls it."""
    for name in names:
        changes, hint, read, seen = _HANDED_ON[name]
        yield make(name, _on(piece, (), "fold_batchnorm", changes), hint, read, seen)


# What both functions for one pair get wrong, in the words of either.
def _pairs(make, layer, bias):
    return [
        make(
            "no_bias_stays_none", ((bias, f"fused.bias = None if {layer}.bias is None else nn.Parameter(bias)"),),
            "A layer without a bias is left without one: the shift of the normalisation needs a place.",
            MISSING, "bias=conv.bias is not None, handed to the new layer",
        ),
        make(
            "bias_not_moved", ((bias, "pass"),),
            "The weight is scaled, the bias is the old one: the shift of the normalisation is lost.",
            FOLDING, "recipes that copy the weight only",
        ),
        make(
            "weight_not_scaled",
            ((f"fused.weight = nn.Parameter(weight, {layer}.weight.requires_grad)", "pass"),),
            "The bias is new, the weight is the old one: every output channel's weights take the slope.",
            FOLDING, "recipes that move the bias only",
        ),
        make(
            "bias_no_parameter", ((bias, "del fused.bias\n    fused.bias = bias"),),
            "The new bias is a tensor and no Parameter: it is neither saved with the layer nor moved along with it.",
            SAME, "del layer.bias; layer.bias = bias, once PyTorch has refused a tensor in a Parameter's place",
        ),
        make(
            "layer_overwritten", ((f"fused = copy.deepcopy({layer})", f"fused = {layer}"),),
            "The given layer itself gets the new weight and bias: whoever called still needs it, make a new one.",
            SAME, "conv.weight.data = …, as in most recipes",
        ),
        make(
            "not_fused", (("return fused", f"return nn.Sequential(copy.deepcopy({layer}), copy.deepcopy(bn))"),),
            "The result still holds two layers, one after the other: fold both into a single one.",
            FOLDING, "wrappers that only look like one layer",
        ),
        make(
            "float32_made", (("return fused", "return fused.float()"),),
            "New numbers are in float32 whatever the old layer was in: keep the dtype of the layer that came in.",
            SAME, "nn.Conv2d(…) and nn.Linear(…) without a dtype",
        ),
        make(
            "dtype_of_the_norm", (("return fused", "return fused.to(bn.running_mean.dtype)"),),
            "The new layer has the BatchNorm's dtype: keep that of the layer that came in, half precision for example.",
            SAME, "dtype=bn.running_mean.dtype, next to a device that is right",
        ),
        make(
            "bias_on_cpu",
            ((
                f"{layer}.weight, {layer}.bias,",
                f"{layer}.weight, torch.zeros(len(bn.running_var), dtype={layer}.weight.dtype)"
                f" if {layer}.bias is None else {layer}.bias,",
            ),),
            "The zeros that stand in for a missing bias are made on the CPU: nothing here should name a device.",
            SAME, "torch.zeros(channels) without a device",
        ),
        make(
            "bias_in_float32",
            ((bias, f"{bias}\n    if {layer}.bias is None:\n        fused.bias.data = bias.float()"),),
            "A bias that was not there before is in float32 whatever the weight is: give it the weight's dtype.",
            SAME, "torch.zeros(channels) without a dtype",
        ),
        make(
            "training_accepted", ((_TRAINING_IF, "if bn.training and bn.running_mean is None:"),),
            "A BatchNorm in training mode is folded: there it uses the batch's statistics, so refuse it.",
            TRAINING, "recipes that read the buffers unasked",
        ),
        make(
            "training_switched_off", ((_TRAINING_ERROR, "bn.eval()"),),
            "A BatchNorm in training mode is put into eval mode in passing: leave that to the caller, refuse it.",
            TRAINING, "a helpful .eval() at the top",
        ),
        make(
            "no_statistics_crash", ((_TRAINING_IF, f"bn.running_mean.numel()\n    {_TRAINING_IF}"),),
            "Without running statistics the code trips over None: ask first, and refuse with a ValueError.",
            TRAINING, "bn.running_mean used unasked",
        ),
        make(
            "no_statistics_accepted",
            ((_NO_GRAD, f"    if bn.running_mean is None:\n        return copy.deepcopy({layer})\n" + _NO_GRAD),),
            "A BatchNorm without running statistics is passed over in silence: it uses the batch's, refuse it.",
            TRAINING, "missing statistics read as mean 0 and variance 1",
        ),
        make(
            "channels_unchecked",
            _other_channels({"conv": "conv.out_channels", "linear": "linear.out_features"}[layer]),
            "The numbers of channels are not compared: broadcasting takes one channel for all, or fails by itself.",
            TRAINING, "multiplying whatever comes",
        ),
    ]


_CALLED_TWICE = (("if calls[source.target] > 1:", "if False:"),)
_NORM_TWICE = (("if calls[node.target] > 1:", "if False:"),)
_PAIR_AGAIN = (
    (
        "if calls[node.target] > 1:",
        "if len({call.all_input_nodes[0].target for call in net.graph.nodes if call.target == node.target}) > 1:",
    ),
    ("if calls[source.target] > 1:", "if calls[source.target] > calls[node.target]:"),
)
_USERS_IGNORED = (("if len(source.users) > 1:", "if len(source.users) > 9:"),)
_RETURNED_IGNORED = (
    ("if len(source.users) > 1:", "if sum(user.op != 'output' for user in source.users) > 1:"),
)
_RANK_IGNORED = (
    ("if run.env[source].dim() != rank:", "if rank == 0:"),
    ('return "fused" if gap <= TOLERANCE else', 'return "fused" if gap is not None else'),
)
_ACTIVATION_PASSED = (
    (
        _SOURCE,
        _SOURCE + '\n        while source.op == "call_function":\n            source = source.all_input_nodes[0]',
    ),
)
_LINEAR_LEFT = ((_KINDS, "isinstance(layer, CONVOLUTIONS)"),)
_MAPS_ONLY = ((_KINDS, "isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))"),)
_MODEL_MODE = (
    (
        "if calls[node.target] > 1:",
        'if model.training:\n            return "the model is in training mode"\n        if calls[node.target] > 1:',
    ),
)
_TRANSPOSED_LEFT = ((_KINDS, "isinstance(layer, (nn.Linear, *CONVOLUTIONS[:3]))"),)

_FROM_THE_MODEL = (
    "layer, bn = fused.get_submodule(source.target), fused.get_submodule(node.target)",
    "layer, bn = model.get_submodule(source.target), model.get_submodule(node.target)",
)
_MOVES_ON = "        node.replace_all_uses_with(source)"
# fmt: on


def _neighbours(model):
    """[(layer's name or None, BatchNorm's name)]: whatever was registered before a BatchNorm is taken for its input."""
    found, before = [], (None, None)
    for name, module in model.named_modules():
        if is_foldable(module):
            fits = isinstance(before[1], (nn.Linear, *CONVOLUTIONS)) and not module.training
            found.append((before[0] if fits and module.running_mean is not None else None, name))
        before = name, module
    return found


def _report_of_neighbours(model, example):
    return [(name, "fused" if layer is not None else "no layer before it") for layer, name in _neighbours(model)]


def _folded_in_a_copy(model, pairs):
    model = copy.deepcopy(model)
    for layer, name in pairs:
        one, bn = model.get_submodule(layer), model.get_submodule(name)
        kind = "fuse_linear_bn" if isinstance(one, nn.Linear) else "fuse_conv_bn"
        model.set_submodule(layer, reference(f"fusion.{kind}")(one, bn))
        model.set_submodule(name, nn.Identity())
    return model


def _fuse_in_sequentials(model, example):
    pairs = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            path = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
            for layer, norm in pairwise(path):
                fits = isinstance(model.get_submodule(layer), (nn.Linear, *CONVOLUTIONS))
                if fits and is_foldable(model.get_submodule(norm)):
                    pairs.append((layer, norm))
    return _folded_in_a_copy(model, pairs)


def _fuse_forwards(model, example):
    """Folds a BatchNorm into the convolution after it as well, padding or not."""
    fused = reference("fusion.fuse")(model, example)
    for node in list(fused.graph.nodes):
        after = [user for user in node.users if user.op == "call_module"]
        bn = fused.get_submodule(node.target) if node.op == "call_module" else None
        conv = fused.get_submodule(after[0].target) if after else None
        if bn is not None and is_foldable(bn) and isinstance(conv, CONVOLUTIONS) and not bn.training:
            scale = bn.weight.data / (bn.running_var + bn.eps).sqrt()
            shift = bn.bias.data - bn.running_mean * scale
            conv.bias.data += (conv.weight.data.sum(dim=(2, 3)) * shift).sum(dim=1)
            conv.weight.data *= scale.view(1, -1, 1, 1)
            node.replace_all_uses_with(node.all_input_nodes[0])
            fused.graph.erase_node(node)
    fused.recompile()
    return fused


def _fuse_on(report_changes, *changes):
    return _on("fusion.fuse", (_UNCHECKED, *changes), "fusion_report", report_changes)


# fmt: off
MISCONCEPTIONS = [
    # --- fold_batchnorm
    *(_fold(name, *rest) for name, rest in _HANDED_ON.items()),
    _fold(
        "no_root", ((_INVSTD, "1 / (bn.running_var.double() + bn.eps)"),),
        "The slope divides by the variance: BatchNorm divides by its square root.",
        FOLDING, "slips of the pen",
    ),
    _fold(
        "multiplied_by_std", ((_INVSTD, "(bn.running_var.double() + bn.eps).sqrt()"),),
        "The slope multiplies by the standard deviation: BatchNorm divides by it.",
        FOLDING, "a std that was never inverted",
    ),
    _fold(
        "mean_forgotten", ((_MEAN, "torch.zeros_like(scale)"),),
        "The running mean is not in the new bias: the layer subtracts it before it scales.",
        FOLDING, "recipes that only scale",
    ),
    _fold(
        "mean_added", ((_MEAN, _MEAN[1:]),),
        "The running mean is added: the layer subtracts it.",
        FOLDING, "a lost minus sign",
    ),
    _fold(
        "mean_not_scaled", ((_MEAN, "-bn.running_mean.double()"),),
        "The running mean is subtracted as it is: the slope multiplies after that, so it is on the mean too.",
        FOLDING, "misplaced parentheses",
    ),
    _fold(
        "beta_scaled", ((_BETA, "shift = shift + bn.bias.double() * scale"),),
        "β is multiplied by the slope: the layer adds it after scaling.",
        FOLDING, "misplaced parentheses",
    ),
    _fold(
        "no_bias_stays_none", ((_SHIFTED, "bias if bias is None else shift.to(bias.dtype)"),),
        "Without an old bias none comes back: the shift of the normalisation needs a place, there always is a new one.",
        MISSING, "bias handed through where it is None",
    ),
    _fold(
        "input_channels_scaled", (("scale.view(-1, 1, *kernel)", "scale.view(1, -1, *kernel)"),),
        "The slope multiplies along axis 1 of the weight, the input channels: outputs are on axis 0.",
        AXIS, "keras kernels, which keep their output channels last",
    ),
    _fold(
        "transposed_as_ordinary", (("if transposed:", "if groups < 0:"),),
        "A transposed convolution is treated as an ordinary one: it keeps its output channels on axis 1 of the weight.",
        AXIS, "isinstance(conv, _ConvNd), and one formula for all",
    ),
    _fold(
        "groups_ignored_when_transposed", ((_WIDE, "scale.view(1, -1, *kernel)"),),
        "With groups, axis 1 of a transposed convolution's weight holds the outputs of one group only: use groups.",
        GROUPS, "torch.nn.utils.fusion, which fails on them",
    ),
    _fold(
        "transposed_guessed", (("if transposed:", "if transposed and len(weight) != channels:"),),
        "The axis of the output channels is guessed from its length: the two may be equally long, so go by transposed.",
        AXIS, "comparing weight.shape with num_features",
    ),
    _fold(
        "slope_rounded", (("    shift = -bn", "    scale = scale.to(weight.dtype)\n    shift = -bn"),),
        "The slope is rounded to the layer's dtype before it multiplies: keep float64 up to the two results.",
        ROUNDED, "factors cast to the weight's dtype, because the product has to have it",
    ),
    _fold(
        "computed_in_own_dtype",
        (
            (_INVSTD, "(bn.running_var + bn.eps).rsqrt()"),
            (_GAMMA, "scale = scale * bn.weight"),
            (_MEAN, "-bn.running_mean * scale"),
            (_BIAS, "shift = shift + bias * scale"),
            (_BETA, "shift = shift + bn.bias"),
            (_FOLDED, "(weight * wide).to(weight.dtype)"),
        ),
        "Something is rounded before large terms cancel: compute in float64 from the start, round once, at the end.",
        ROUNDED, "most recipes, torch.nn.utils.fusion too",
    ),
    _fold(
        "statistics_in_half",
        (("if bn.running_mean.device", "bn = copy.deepcopy(bn).to(weight.dtype)\n    if bn.running_mean.device"),),
        "The statistics are rounded to the layer's own half precision first: compute in float64 from what was given.",
        ROUNDED, "bn.half(), to have everything in one dtype",
    ),
    _fold(
        "float64_returned", ((_FOLDED, "weight.double() * wide"), (_SHIFTED, "shift")),
        "The results are left in float64: cast them back to the dtypes that came in.",
        ROUNDED, "a .double() whose other half is missing",
    ),
    _fold(
        "bias_in_weights_dtype", ((_SHIFTED, "shift.to(weight.dtype)"),),
        "The new bias has the weight's dtype, although the old one had another: each keeps the dtype it came in.",
        ROUNDED, "one dtype read from the weight and used for both",
    ),
    _fold(
        "promoted",
        ((_FOLDED, "(weight.double() * wide).to(bn.running_var.dtype)"), (_SHIFTED, "shift.to(bn.running_var.dtype)")),
        "The results have the dtype of the statistics: weight and bias keep their own, half precision for example.",
        ROUNDED, "half · float32, which PyTorch promotes to float32",
    ),
    _fold(
        "weight_overwritten", ((_FOLDED, "weight.mul_(wide.to(weight.dtype))"),),
        "The weight that came in is multiplied in place: whoever called still needs it.",
        SAME, "weight *= …, to save memory",
    ),
    _fold(
        "statistics_overwritten",
        ((_INVSTD, "bn.running_var.add_(bn.eps).double().rsqrt()"),),
        "eps is added to the running variance itself, in place: the given layer is another one afterwards.",
        SAME, "var += eps",
    ),
    _fold(
        "results_swapped",
        ((f"return {_FOLDED}, {_SHIFTED}", f"return {_SHIFTED}, {_FOLDED}"),),
        "Weight and bias have changed places: the weight comes first.",
        FOLDING, "a slip of the pen",
    ),
    # --- fuse_conv_bn
    *_handed_on(
        _conv, "fusion.fuse_conv_bn", "eps_forgotten", "eps_ignored", "eps_outside_root", "gamma_forgotten",
        "gamma_absolute", "beta_forgotten", "bias_not_scaled", "bias_dropped", "affine_required", "bias_required",
        "groups_tiled",
    ),
    *_pairs(_conv, "conv", _NEW_BIAS),
    _conv(
        "padding_mode_dropped", _anew("padding_mode"),
        "The padding mode is lost, and zeros stand at the edges: the new layer pads as the old one did.",
        REST, "recipes that list a convolution's arguments",
    ),
    _conv(
        "stride_dropped", _anew("stride"),
        "The stride is lost: the new layer steps as the old one did.",
        REST, "recipes that list a convolution's arguments",
    ),
    _conv(
        "padding_dropped", _anew("padding"),
        "The padding is lost: the new layer pads as much as the old one did.",
        REST, "recipes that list a convolution's arguments",
    ),
    _conv(
        "dilation_dropped", _anew("dilation"),
        "The dilation is lost: the new layer spreads its kernel as the old one did.",
        REST, "recipes that list a convolution's arguments",
    ),
    _conv(
        "groups_dropped", _anew("groups"),
        "The groups are lost: the new layer divides its channels as the old one did.",
        REST, "recipes that list a convolution's arguments",
    ),
    _conv(
        "output_padding_dropped", _anew("output_padding"),
        "The output padding of a transposed convolution is lost: with a stride it decides how large the output is.",
        REST, "recipes that list an ordinary convolution's arguments",
    ),
    _conv(
        "transposed_not_passed", ((", conv.transposed, conv.groups)", ")"),),
        "Transposed convolutions are folded like ordinary ones: say that they are, the convolution knows it.",
        AXIS, "a call with the default arguments",
    ),
    _conv(
        "groups_not_passed", (("conv.transposed, conv.groups)", "conv.transposed)"),),
        "A transposed convolution with groups is folded as if it had one: pass its groups on.",
        GROUPS, "a call with the default arguments",
    ),
    # --- fuse_linear_bn
    *_handed_on(
        _linear, "fusion.fuse_linear_bn", "eps_forgotten", "eps_ignored", "eps_outside_root", "gamma_forgotten",
        "gamma_absolute", "beta_forgotten", "bias_not_scaled", "bias_dropped", "affine_required", "bias_required",
    ),
    *_pairs(_linear, "linear", _NEW_LINEAR_BIAS),
    _linear(
        "input_features_scaled", (("linear.bias, bn)", "linear.bias, bn, transposed=True)"),),
        "The slope multiplies along the input features: a linear layer keeps its outputs on axis 0 of the weight.",
        AXIS, "weights thought of as (in, out)",
    ),
    # --- fusion_report
    _report(
        "training_mode_ignored",
        (("bn = net.get_submodule(node.target)", "bn = copy.deepcopy(net.get_submodule(node.target)).eval()"),),
        "A layer in training mode is called fused: there it uses the batch's statistics, folding changes the output.",
        TRAINING, "reports that do not ask for the mode",
    ),
    _report(
        "no_statistics_ignored",
        (("return str(error)", 'return "fused" if bn.running_mean is None else str(error)'),),
        "A layer without running statistics is called fused: in eval mode too it uses the batch's own.",
        TRAINING, "reports that do not ask for the buffers",
    ),
    _report(
        "activation_passed", _ACTIVATION_PASSED,
        "A BatchNorm behind an activation is called fused with the convolution before that: a ReLU does not commute.",
        ACROSS, "looking for the last convolution instead of the last layer",
    ),
    _report(
        "folded_forwards",
        (
            (
                "bn = net.get_submodule(node.target)",
                "following = [user for user in node.users if user.op == 'call_module']\n"
                "        if any(isinstance(net.get_submodule(user.target), CONVOLUTIONS) for user in following):\n"
                '            return "fused"\n'
                "        bn = net.get_submodule(node.target)",
            ),
        ),
        "A BatchNorm before a convolution is called fused: its shift is missing in the padding, so the edges go wrong.",
        BEFORE, "pre-activation networks, fused the other way round",
    ),
    _report(
        "layer_called_twice_ignored", _CALLED_TWICE,
        "A layer that is called twice is fused with what follows one of its calls: the other call would change too.",
        TWICE, "torch.fx.experimental.optimization",
    ),
    _report(
        "norm_called_twice_ignored", _NORM_TWICE,
        "A BatchNorm that is called twice is called fused: shared layers stay as they are.",
        TWICE, "reports that look at one call at a time",
    ),
    _report(
        "pair_called_again", _PAIR_AGAIN,
        "A pair of layer and BatchNorm that is called several times is called fused: shared layers stay as they are.",
        TWICE, "reports that compare names and count no calls",
    ),
    _report(
        "users_ignored", _USERS_IGNORED,
        "The layer's output is used elsewhere too, and that user would get the folded values: leave the pair alone.",
        ELSEWHERE, "residual connections around a BatchNorm",
    ),
    _report(
        "returned_ignored", _RETURNED_IGNORED,
        "The layer's output is what the model returns: whoever calls the model uses it, so leave the pair alone.",
        ELSEWHERE, "counting the layers that take an output, and not the model's own",
    ),
    _report(
        "rank_ignored", _RANK_IGNORED,
        "A linear layer on (N, L, features) is called fused: its features are last, BatchNorm's channels on axis 1.",
        SEQUENCES, "torch.fx.experimental.optimization",
    ),
    _report(
        "registration_order",
        ((_ROW_LIST, "return [(name, rows[name]) for name, _ in model.named_modules() if name in rows]"),),
        "The rows come in the order in which the layers were registered: asked for is the order of the calls.",
        GRAPH, "loops over named_modules",
    ),
    _report(
        "registered_neighbours", _report_of_neighbours,
        "What was registered before a BatchNorm is taken for what it follows: only the forward pass knows that.",
        GRAPH, "fusing helpers that zip a model's children",
    ),
    _report(
        "short_names",
        ((_ROW_LIST, 'return [(name.rpartition(".")[2], reason) for name, reason in rows.items()]'),),
        "The names are the last parts of the layers' names: qualified ones, with their parents, tell them apart.",
        REPORT, "named_children in a recursion",
    ),
    _report(
        "graph_names",
        ((_ROW_LIST, 'return [(name.replace(".", "_"), reason) for name, reason in rows.items()]'),),
        "These are the names of the graph's nodes, with underscores: asked for are the layers' qualified names.",
        REPORT, "node.name where node.target is meant",
    ),
    _report(
        "fused_only", ((_ROW_LIST, 'return [row for row in rows.items() if row[1] == "fused"]'),),
        "Only the fused layers are reported: every BatchNorm has a row, the others with a reason.",
        REPORT, "reports written while fusing",
    ),
    _report(
        "uncalled_forgotten", (('rows.setdefault(name, "is not called")', "continue"),),
        "A BatchNorm that the forward pass never calls has no row: it comes last, with a reason.",
        REPORT, "reports written from the graph alone",
    ),
    _report(
        "row_for_each_call",
        (
            (
                _ROW_LIST,
                "called = [node.target for node in net.graph.nodes if node.target in rows]\n"
                "    called += [name for name in rows if name not in called]\n"
                "    return [(name, rows[name]) for name in called]",
            ),
        ),
        "A BatchNorm that is called twice has two rows: one for each layer, at its first call.",
        REPORT, "a row appended for each node",
    ),
    _report(
        "truth_values", ((_ROW_LIST, 'return [(name, reason == "fused") for name, reason in rows.items()]'),),
        "The second part of a row is a truth value: it is the word fused, or the reason in words.",
        REPORT, "reports that say whether, not why",
    ),
    _report(
        "dictionary_returned", ((_ROW_LIST, "return rows"),),
        "A dictionary comes back: asked for is a list of pairs, name and verdict.",
        REPORT, "a dict that collected the rows",
    ),
    _report(
        "linear_left", _LINEAR_LEFT,
        "A BatchNorm after a linear layer is left alone: on a table (N, features) it can be folded like any other.",
        WHOLE, "fusing helpers for convolutions only",
    ),
    _report(
        "maps_only", _MAPS_ONLY,
        "A BatchNorm after a convolution of 1 or 3 axes is left alone: it can be folded like that of a 2d one.",
        WHOLE, "isinstance(m, nn.Conv2d)",
    ),
    _report(
        "mode_of_the_model", _MODEL_MODE,
        "The mode of the whole model decides here: what counts is the mode of the BatchNorm layer itself.",
        TRAINING, "if model.training, at the top",
    ),
    _report(
        "transposed_left", _TRANSPOSED_LEFT,
        "A BatchNorm after a transposed convolution is left alone: your fuse_conv_bn takes those too.",
        WHOLE, "isinstance(m, nn.Conv2d)",
    ),
    _report(
        "tuple_not_unpacked", ((_ARGS, "args = (example,)"),),
        "A tuple as the example is taken for one argument: it holds the arguments of the forward pass.",
        WHOLE, "models of one input only",
    ),
    _report(
        "model_run", (("        run.run(*args)", "        model(*args)\n        run.run(*args)"),),
        "The given model itself is run on the example: a layer in training mode moves its running statistics.",
        SAME, "model(example) to see the shapes",
    ),
    _report(
        "hooks_left",
        ((_ARGS, f"[module.register_forward_hook(lambda *_: None) for module in model.modules()]\n    {_ARGS}"),),
        "Hooks that watched the forward pass are still on the given model: remove them, or put them on a copy.",
        SAME, "register_forward_hook, whose handle nobody keeps",
    ),
    _report(
        "random_numbers_used", (("with reproducible():", "with torch.no_grad():"),),
        "The example's run draws from torch's random numbers, and whoever comes next gets others: put them back.",
        SAME, "a dropout layer in training mode, and fork_rng forgotten",
    ),
    _report(
        "model_put_into_eval", ((_ARGS, f"model.eval()\n    {_ARGS}"),),
        "The given model is put into eval mode: its modes are the caller's, and a layer in training mode has to stay.",
        SAME, "a helpful .eval() at the top",
    ),
    # --- fuse
    _fuse(
        "nothing_fused", (("return fused", "return copy.deepcopy(model)"),),
        "Nothing was folded: the BatchNorm layers are all still there and still run.",
        WHOLE, "a result that is computed and not returned",
    ),
    _fuse(
        "norm_still_applied",
        (_UNCHECKED, (_MOVES_ON, "        pass"), ("fused.graph.erase_node(node)", "continue")),
        "The folded layers are in place, and the BatchNorm layers still run behind them: they normalise twice.",
        WHOLE, "a graph that is edited and not rewired",
    ),
    _fuse(
        "training_mode_ignored", ((_ARGS, f"model = copy.deepcopy(model).eval()\n    {_ARGS}"),),
        "A copy in eval mode is fused, and with it a layer that was in training mode: its output depends on the batch.",
        TRAINING, "a helpful .eval() at the top",
    ),
    _fuse(
        "model_put_into_eval", ((_ARGS, f"model.eval()\n    {_ARGS}"),),
        "The given model is put into eval mode: its modes are the caller's, and a layer in training mode has to stay.",
        SAME, "a helpful .eval() at the top",
    ),
    _fuse(
        "activation_passed",
        _fuse_on(
            _ACTIVATION_PASSED,
            (
                f"            {_SOURCE}",
                f"            {_SOURCE}\n            before = source\n"
                '            while source.op == "call_function":\n                source = source.all_input_nodes[0]',
            ),
            (_MOVES_ON, "        node.replace_all_uses_with(before)"),
        ),
        "A BatchNorm is folded across an activation: scale and shift inside a ReLU are not those outside.",
        ACROSS, "looking for the last convolution instead of the last layer",
    ),
    _fuse(
        "folded_forwards", _fuse_forwards,
        "A BatchNorm is folded into the padded convolution after it: its shift is missing in the padding.",
        BEFORE, "pre-activation networks, fused the other way round",
    ),
    _fuse(
        "layer_called_twice_ignored", _fuse_on(_CALLED_TWICE),
        "A layer that is called twice got a BatchNorm folded in: its other call has changed as well.",
        TWICE, "torch.fx.experimental.optimization",
    ),
    _fuse(
        "norm_called_twice_ignored", _fuse_on(_NORM_TWICE),
        "A BatchNorm that is called twice was folded away: shared layers stay as they are.",
        TWICE, "fusing that looks at one call at a time",
    ),
    _fuse(
        "pair_called_again", _fuse_on(_PAIR_AGAIN, _FROM_THE_MODEL),
        "A pair of layer and BatchNorm that is called several times was folded: shared layers stay as they are.",
        TWICE, "fusing that tries out which pairs leave the output as it was",
    ),
    _fuse(
        "users_ignored", _fuse_on(_USERS_IGNORED),
        "A layer whose output is used elsewhere too was changed: that other user now gets normalised values.",
        ELSEWHERE, "residual connections around a BatchNorm",
    ),
    _fuse(
        "returned_ignored", _fuse_on(_RETURNED_IGNORED),
        "A layer whose output the model returns was changed: whoever calls the model now gets normalised values.",
        ELSEWHERE, "counting the layers that take an output, and not the model's own",
    ),
    _fuse(
        "rank_ignored", _fuse_on(_RANK_IGNORED),
        "A linear layer on (N, L, features) was fused: its features are last, BatchNorm's channels on axis 1.",
        SEQUENCES, "torch.fx.experimental.optimization",
    ),
    _fuse(
        "linear_left", _fuse_on(_LINEAR_LEFT),
        "A BatchNorm after a linear layer is left alone: on a table (N, features) it can be folded like any other.",
        WHOLE, "fusing helpers for convolutions only",
    ),
    _fuse(
        "maps_only", _fuse_on(_MAPS_ONLY),
        "A BatchNorm after a convolution of 1 or 3 axes is left alone: it can be folded like that of a 2d one.",
        WHOLE, "isinstance(m, nn.Conv2d)",
    ),
    _fuse(
        "mode_of_the_model", _fuse_on(_MODEL_MODE),
        "The mode of the whole model decides here: what counts is the mode of the BatchNorm layer itself.",
        TRAINING, "if model.training, at the top",
    ),
    _fuse(
        "transposed_left", _fuse_on(_TRANSPOSED_LEFT),
        "A BatchNorm after a transposed convolution is left alone: your fuse_conv_bn takes those too.",
        WHOLE, "isinstance(m, nn.Conv2d)",
    ),
    _fuse(
        "registered_neighbours",
        lambda model, example: _folded_in_a_copy(model, [pair for pair in _neighbours(model) if pair[0] is not None]),
        "What was registered before a BatchNorm is taken for what it follows: only the forward pass knows that.",
        GRAPH, "fusing helpers that zip a model's children",
    ),
    _fuse(
        "sequentials_only", _fuse_in_sequentials,
        "Only neighbours inside a Sequential are fused: pairs that a forward method joins are legal too.",
        GRAPH, "fusing helpers that walk through Sequential containers",
    ),
    _fuse(
        "model_changed",
        (
            _UNCHECKED,
            (
                "fused.set_submodule(source.target, both)",
                "fused.set_submodule(source.target, both)\n            model.set_submodule(source.target, both)",
            ),
        ),
        "The fused layers went into the given model too: it has to stay as it was, make a new one.",
        SAME, "fusing in place",
    ),
    _fuse(
        "model_run", (("want = twin(model)(*args)", "want = model(*args)"),),
        "The given model itself is run on the example: a layer in training mode moves its running statistics.",
        SAME, "comparing with the original, which is not in eval mode throughout",
    ),
    _fuse(
        "result_run", (("got = twin(fused)(*args)", "got = fused(*args)"),),
        "The new model is run on the example before it is handed out: a layer in training mode has moved on by then.",
        SAME, "comparing with the result itself, which is not in eval mode throughout",
    ),
    _fuse(
        "layers_shared",
        (
            (
                "fused = trace_layers(model, args, is_layer)",
                "fused = fx.GraphModule(model, trace_layers(model, args, is_layer).graph)",
            ),
        ),
        "The new model holds layers of the given one: whatever one of them learns or measures, the other has as well.",
        SAME, "fx.symbolic_trace(model), which copies no layer",
    ),
    _fuse(
        "tuple_not_unpacked", ((_ARGS, "args = (example,)"),),
        "A tuple as the example is taken for one argument: it holds the arguments of the forward pass.",
        WHOLE, "models of one input only",
    ),
    _fuse(
        "report_returned_too", (("return fused", "return fused, list(rows.items())"),),
        "Model and report come back together: asked for is the model alone.",
        WHOLE, "functions that return all they know",
    ),
]
# fmt: on
