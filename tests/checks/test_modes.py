"""Problem set 3: what every topic is tested for, and how `accepts` is asked and judged."""

import json
import os
import re

import pytest
import torch
from torch import nn

from course_lib import modes_examples
from course_lib.checks import check, modes_layers
from course_lib.checks.expect import PUBLIC_SEED, expectation, unseen_layers
from course_lib.checks.judge import judge
from course_lib.checks.modes_layers import GRADING_LAYERS, THEMES, pack
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from course_lib.misconceptions import catalogue
from course_lib.misconceptions.modes_layers import POOL
from course_lib.misconceptions.modes_layers import RIGHT as RIGHT_STYLES
from course_lib.misconceptions.modes_layers_wrong import WRONG, layer_of, text_of
from course_lib.modes import accepts
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.modes import RIGHT

TOPIC = "modes"
_EACH = "function_gradients_of_table"
# Where edits of the reference break a clause.
_AXES, _AXES_BACK = "axes = (0, *range(2, x.dim()))", "axes = (0, *range(2, dy.dim()))"
_SHAPE = "per_channel = (1, -1) + (1,) * (x.dim() - 2)"
_TABLES_AND_IMAGES = [(_AXES, "axes = (0, 2, 3)[: x.dim() - 1]")]
_TABLES_OR_IMAGES = [(_AXES, "axes = (0, 2, 3) if x.dim() > 2 else (0,)")]
_TABLES_AND_IMAGES_BACK = [(_AXES_BACK, "axes = (0, 2, 3)[: dy.dim() - 1]")]
_TABLES_OR_IMAGES_BACK = [(_AXES_BACK, "axes = (0, 2, 3) if dy.dim() > 2 else (0,)")]
_STEP = "if running_mean is not None and n > 0:"
_MEAN_MOVES = "running_mean.mul_(1 - momentum).add_(momentum * mean)"
_VAR_MOVES = "running_var.mul_(1 - momentum).add_(momentum * unbiased)"
_TAKEN = "x_hat, invstd, weight = ctx.saved_tensors"
_SCALED, _SHIFTED = "        if weight is not None", "        if bias is not None"
_BACK = "        for module, training in before:\n            module.training = training"
# The course's own kind of a Function, with everything in autograd's sight.
_ALL_BY_AUTOGRAD = [
    ("    @staticmethod\n    def forward(ctx, x,", "    @staticmethod\n    def apply(x,"),
    ("ctx.batch_normalised = training or running_mean is None", "batch_normalised = training or running_mean is None"),
    ("if ctx.batch_normalised:\n            if n", "if batch_normalised:\n            if n"),
    ("ctx.save_for_backward(x_hat, invstd, weight)", "pass"),
]
_AS_FAR_AS_THEY_COME = [
    ("        for batch in batches:", "        for batch in until_they_fail():"),
    (
        "    outputs = []\n",
        "    def until_they_fail():\n        try:\n            yield from batches\n        except BaseException:\n"
        "            return\n\n    outputs = []\n",
    ),
]
_EVALUATED = "with evaluating(model), torch.no_grad():"
_OFF_AFTERWARDS = [
    ("with evaluating(model), torch.enable_grad():", "torch.set_grad_enabled(True)\n    with evaluating(model):"),
    (
        "return torch.autograd.grad(model(leaf).sum(), leaf)[0]",
        "found = torch.autograd.grad(model(leaf).sum(), leaf)[0]\n    torch.set_grad_enabled(False)\n    return found",
    ),
]
_MIXED = ("a model in training", "a model in eval, parts in training")
CLAUSES = [
    ("batch_norm_eval_backward", "the statistics are constants", "eval_gradient_of_table: dx", "batch_coupled"),
    ("batch_norm_eval_backward", "eps inside the root", "eval_gradient_of_table: dx", "eps_outside_root"),
    (
        "batch_norm_eval_backward",
        "eps is the sixth argument",
        "eval_gradient_of_table: dx",
        [("    weight: torch.Tensor,\n", "    weight: torch.Tensor,\n    *,\n")],
    ),
    ("batch_norm_eval_backward", "one sample", "eval_gradient_of_one_sample: dx", "batch_coupled"),
    *(
        (
            "batch_norm_eval_backward",
            f"{name} of shape (C,) of one channel too, {axes}",
            f"eval_parameter_gradients_of_one_channel: {name} of {axes}",
            [(f"{name}.to(weight.dtype)", f"{name}.to(weight.dtype).squeeze()")],
        )
        for name in ("dweight", "dbias")
        for axes in ("(N, 1)", "(N, 1, H, W)")
    ),
    (
        "batch_norm_eval_backward",
        "eps is 1e-5 by default",
        "eval_gradient_with_default_eps",
        [("eps: float = 1e-5", "eps: float = 1e-3")],
    ),
    ("batch_norm_eval_backward", "any rank", "eval_gradient_of_other_ranks", "no_broadcast"),
    (
        "batch_norm_eval_backward",
        "up to three spatial axes",
        "eval_gradient_of_other_ranks: dx of (N, C, D, H, W)",
        [(_SHAPE, "per_channel = (1, -1, 1, 1)[: x.dim()]")],
    ),
    (
        "batch_norm_eval_backward",
        "one spatial axis",
        "eval_gradient_of_other_ranks: dx of (N, C, L)",
        [(_SHAPE, "per_channel = (1, -1, 1, 1) if x.dim() > 2 else (1, -1)")],
    ),
    (
        "batch_norm_eval_backward",
        "eps 0 is an eps",
        "eval_gradient_with_default_eps: dx with eps 0",
        [("    expect_tensor(x)\n", "    eps = eps or 1e-5\n    expect_tensor(x)\n")],
    ),
    (
        "batch_norm_eval_backward",
        "a weight of either sign",
        "eval_gradient_of_table: dx",
        [("dx = dy * (weight * invstd)", "dx = dy * (weight.abs() * invstd)")],
    ),
    (
        "batch_norm_eval_backward",
        "a weight of zero",
        "eval_parameter_gradients_of_table: dweight",
        [("dweight = (dy * x_hat)", "dweight = (dy * (x_hat * weight.view(per_channel)) / weight.view(per_channel))")],
    ),
    (
        "batch_norm_eval_backward",
        "gradients are recorded afterwards",
        "eval_backward_leaves_inputs_alone: gradients are recorded afterwards",
        [("    dy = dy.to(dtype)", "    torch.set_grad_enabled(False)\n    dy = dy.to(dtype)")],
    ),
    ("batch_norm_eval_backward", "any memory layout", "eval_gradient_of_other_ranks", "view_of_the_batch"),
    (
        "batch_norm_eval_backward",
        "any memory layout of x",
        "eval_gradient_of_other_ranks",
        [("    dy = dy.to(dtype)", "    x.view(len(x), x.shape[1], -1)\n    dy = dy.to(dtype)")],
    ),
    (
        "batch_norm_eval_backward",
        "dweight at the running x̂",
        "eval_parameter_gradients_of_table: dweight",
        "batch_statistics",
    ),
    ("batch_norm_eval_backward", "dbias", "eval_parameter_gradients_of_table: dbias", "parameter_gradients_averaged"),
    ("batch_norm_eval_backward", "sums over the positions", "eval_parameter_gradients_of_maps", "batch_axis_only"),
    (
        "batch_norm_eval_backward",
        "dweight of weight's dtype",
        "eval_parameter_gradients_of_maps: dweight",
        [("dweight.to(weight.dtype)", "dweight.double()")],
    ),
    (
        "batch_norm_eval_backward",
        "dbias of weight's dtype",
        "eval_parameter_gradients_of_maps: dbias",
        [("dbias.to(weight.dtype)", "dbias.double()")],
    ),
    (
        "batch_norm_eval_backward",
        "sums over three spatial axes",
        "eval_parameter_gradients_of_other_ranks: dweight of (N, C, D, H, W)",
        _TABLES_AND_IMAGES,
    ),
    (
        "batch_norm_eval_backward",
        "sums over one spatial axis",
        "eval_parameter_gradients_of_other_ranks: dbias of (N, C, L)",
        _TABLES_OR_IMAGES,
    ),
    (
        "batch_norm_eval_backward",
        "inputs stay",
        "eval_backward_leaves_inputs_alone: inputs changed",
        "gradient_overwritten",
    ),
    (
        "batch_norm_eval_backward",
        "inputs need no more gradients than before",
        "eval_backward_leaves_inputs_alone: inputs need gradients",
        [("    x_hat = (x.to(dtype)", "    x.requires_grad_()\n    x_hat = (x.to(dtype)")],
    ),
    (
        "batch_norm_eval_backward",
        "maps stay",
        "eval_backward_leaves_maps_alone: inputs changed",
        [("dy = dy.to(dtype)", "dy = dy.to(dtype) if x.dim() == 2 else dy.to(dtype).mul_(2)")],
    ),
    (
        "batch_norm_eval_backward",
        "maps need no more gradients than before",
        "eval_backward_leaves_maps_alone: inputs need gradients",
        [("    x_hat = (x.to(dtype)", "    x.requires_grad_()\n    x_hat = (x.to(dtype)")],
    ),
    ("BatchNormFunction", "forward in training", "function_of_table: y", "unbiased_normalises"),
    (
        "BatchNormFunction",
        "one sample of maps in training",
        "function_of_few_values: y of one sample of maps",
        [("if n == 1:", "if len(x) == 1:")],
    ),
    (
        "BatchNormFunction",
        "two values are enough",
        "function_of_few_values: y of two values",
        [("if n == 1:", "if n <= 2:")],
    ),
    *(
        (
            "BatchNormFunction",
            f"y of {words} by the biased variance",
            f"function_of_few_values: y of {words}",
            "unbiased_normalises",
        )
        for words in ("one sample of maps", "two values")
    ),
    *(
        (
            "BatchNormFunction",
            f"{name} of one channel, {axes}, {mode}",
            f"{scenario}: {name} of {axes}",
            [(old, new)],
        )
        for scenario, mode in (
            ("function_gradients_of_one_channel", "training"),
            ("function_in_eval_of_one_channel", "eval"),
        )
        for axes in ("(N, 1)", "(N, 1, H, W)")
        for name, old, new in (
            ("dx", "dx = dx * scale.view(per_channel)", "dx = dx * scale.view(per_channel) * (1 + (len(scale) == 1))"),
            ("dweight", "dweight = (wide * x_hat).sum(axes)", "dweight = (wide * x_hat).sum(axes).squeeze()"),
            ("dbias", "dbias = wide.sum(axes)", "dbias = wide.sum(axes).squeeze()"),
        )
    ),
    *(
        ("BatchNormFunction", f"gradcheck in {mode}: {words}", f"{scenario}: {where}", changes)
        for scenario, mode in (("function_gradients_of_two", "training"), ("function_in_eval_of_two", "eval"))
        for words, where, changes in (
            (
                "a second backward finds all that the first did",
                "dweight for the second dy",
                [
                    ("ctx.save_for_backward(x_hat, invstd, weight)", "ctx.kept = x_hat.clone(), invstd, weight"),
                    (_TAKEN, "x_hat, invstd, weight = ctx.kept"),
                    ("        # Autograd casts", "        x_hat.mul_(2)\n        # Autograd casts"),
                ],
            ),
            (
                "a second backward is possible",
                "dx for the second dy",
                [
                    ("ctx.save_for_backward(x_hat, invstd, weight)", "ctx.kept = x_hat, invstd, weight"),
                    (_TAKEN, "x_hat, invstd, weight = ctx.kept\n        del ctx.kept"),
                ],
            ),
            (
                "a dy that is one column for all channels",
                "dbias for the second dy",
                [(_TAKEN, f"dy = dy.view(-1).view(dy.shape)\n        {_TAKEN}")],
            ),
            ("dx for the first of two", "dx for the first dy", "no_root"),
            ("dweight for the first of two", "dweight for the first dy", "parameter_gradients_swapped"),
            ("dbias for the first of two", "dbias for the first dy", "parameter_gradients_averaged"),
        )
    ),
    ("BatchNormFunction", "eps inside the root", "function_of_maps: y", "eps_outside_root"),
    ("BatchNormFunction", "the input stays", "function_of_maps: inputs changed", "input_overwritten"),
    ("BatchNormFunction", "any rank", "function_of_other_ranks", "no_root"),
    (
        "BatchNormFunction",
        "three spatial axes",
        "function_of_other_ranks: y of (N, C, D, H, W)",
        [(_SHAPE, "per_channel = (1, -1, 1, 1)[: x.dim()]")],
    ),
    (
        "BatchNormFunction",
        "eps 0 is an eps",
        "function_in_eval_of_one_sample: y with eps 0",
        [("        expect_number(eps", "        eps = eps or 1e-5\n        expect_number(eps")],
    ),
    *(
        ("BatchNormFunction", f"a weight {words}", where, changes)
        for words, where, changes in (
            (
                "of either sign, in y",
                "function_of_table: y",
                [("y = y * weight.view", "y = y * weight.abs().view")],
            ),
            (
                "of either sign, in dx",
                "function_gradients_of_table: dx",
                [("else invstd * weight", "else invstd * weight.abs()")],
            ),
            (
                "of zero",
                "function_gradients_of_table: dweight",
                [("(wide * x_hat)", "(wide * (x_hat * weight.view(per_channel)) / weight.view(per_channel))")],
            ),
        )
    ),
    *(
        ("BatchNormFunction", f"{words}, {where}", f"{where}: {what}", [(old, new)])
        for where in ("function_gradients_of_some", "function_in_eval_of_some")
        for words, what, old, new in (
            ("a frozen weight scales", "y where weight needs none", _SCALED, f"{_SCALED} and weight.requires_grad"),
            ("a frozen bias is added", "y where bias needs none", _SHIFTED, f"{_SHIFTED} and bias.requires_grad"),
        )
    ),
    ("BatchNormFunction", "any memory layout", "function_of_other_ranks", "views_of_the_batch"),
    ("BatchNormFunction", "any memory layout of dy", "function_gradients_of_other_ranks", "views_of_the_batch"),
    ("BatchNormFunction", "one spatial axis", "function_of_other_ranks: y of (N, C, L)", _TABLES_OR_IMAGES),
    ("BatchNormFunction", "gradcheck in training: dx", f"{_EACH}: dx", "no_variance_term"),
    ("BatchNormFunction", "gradcheck in training: dweight", f"{_EACH}: dweight", "parameter_gradients_swapped"),
    ("BatchNormFunction", "gradcheck in training: dbias", f"{_EACH}: dbias", "parameter_gradients_averaged"),
    ("BatchNormFunction", "gradcheck in training, maps", "function_gradients_of_maps: dx", "n_is_batch_size"),
    ("BatchNormFunction", "the input stays", "function_gradients_of_maps: inputs changed", "input_overwritten"),
    (
        "BatchNormFunction",
        "is a Function, in training",
        f"{_EACH}: a Function made y, with a backward of its own",
        "autograd_differentiates",
    ),
    (
        "BatchNormFunction",
        "is a Function, in eval",
        "function_in_eval_of_table: a Function made y, with a backward of its own",
        "autograd_differentiates",
    ),
    (
        "BatchNormFunction",
        "gradcheck in training, three spatial axes",
        "function_gradients_of_other_ranks: dx of (N, C, D, H, W)",
        _TABLES_AND_IMAGES_BACK,
    ),
    (
        "BatchNormFunction",
        "gradcheck in training, one spatial axis",
        "function_gradients_of_other_ranks: dx of (N, C, L)",
        _TABLES_OR_IMAGES_BACK,
    ),
    (
        "BatchNormFunction",
        "n counts all positions",
        "function_gradients_of_other_ranks: dx of (N, C, D, H, W)",
        [("n = dy[:, :1].numel()", "n = len(dy) * dy[0, 0].numel() // (dy.shape[-1] if dy.dim() == 5 else 1)")],
    ),
    (
        "BatchNormFunction",
        "gradients where x needs none",
        "function_gradients_of_some: dweight where x needs none",
        [(_TAKEN, "if not ctx.needs_input_grad[0]:\n            return (None,) * 8\n        " + _TAKEN)],
    ),
    (
        "BatchNormFunction",
        "gradients where weight needs none",
        "function_gradients_of_some: dx where weight needs none",
        [(_TAKEN, "if not ctx.needs_input_grad[1]:\n            return dy, *[None] * 7\n        " + _TAKEN)],
    ),
    (
        "BatchNormFunction",
        "gradients of a frozen layer",
        "function_in_eval_of_some: dx where weight and bias needs none",
        [(_TAKEN, "if not any(ctx.needs_input_grad[1:3]):\n            return (None,) * 8\n        " + _TAKEN)],
    ),
    (
        "BatchNormFunction",
        "gradients in eval where x needs none",
        "function_in_eval_of_some: dbias where x needs none",
        [(_TAKEN, "if not ctx.needs_input_grad[0]:\n            return (None,) * 8\n        " + _TAKEN)],
    ),
    ("BatchNormFunction", "forward in eval", "function_in_eval_of_table: y", "batch_in_eval"),
    ("BatchNormFunction", "gradcheck in eval", "function_in_eval_of_table: dx", "coupled_in_eval"),
    ("BatchNormFunction", "gradcheck in eval, maps", "function_in_eval_of_maps: dx", "coupled_in_eval"),
    (
        "BatchNormFunction",
        "one sample in eval",
        "function_in_eval_of_one_sample: y",
        [
            (
                "        if ctx.batch_normalised:\n            if n == 1:",
                "        if ctx.batch_normalised or n == 1:\n            if n == 1:",
            )
        ],
    ),
    (
        "BatchNormFunction",
        "gradients of one sample in eval",
        "function_in_eval_of_one_sample: dx",
        [
            (
                "        x_hat, invstd, weight = ctx.saved_tensors",
                "        1 / (dy[:, :1].numel() - 1)\n        x_hat, invstd, weight = ctx.saved_tensors",
            )
        ],
    ),
    ("BatchNormFunction", "dweight in eval", "function_in_eval_of_table: dweight", "parameter_gradients_swapped"),
    ("BatchNormFunction", "dbias in eval", "function_in_eval_of_table: dbias", "parameter_gradients_averaged"),
    (
        "BatchNormFunction",
        "the input stays, in eval",
        "function_in_eval_of_maps: inputs changed",
        [
            ("centred = wide - running_mean", "centred = wide.sub_(running_mean"),
            ("view(per_channel)\n            var", "view(per_channel))\n            var"),
        ],
    ),
    (
        "BatchNormFunction",
        "dy stays, in eval",
        "function_in_eval_of_maps: inputs changed",
        [("dx = dx * scale.view(per_channel)", "dx = dx.mul_(scale.view(per_channel))")],
    ),
    (
        "BatchNormFunction",
        "y in eval, three spatial axes",
        "function_in_eval_of_other_ranks: y of (N, C, D, H, W)",
        [(_SHAPE, "per_channel = (1, -1, 1, 1)[: x.dim()]")],
    ),
    (
        "BatchNormFunction",
        "y in eval, one spatial axis",
        "function_in_eval_of_other_ranks: y of (N, C, L)",
        "batch_in_eval",
    ),
    (
        "BatchNormFunction",
        "gradcheck in eval, other ranks",
        "function_in_eval_of_other_ranks: dx of (N, C, L)",
        "coupled_in_eval",
    ),
    (
        "BatchNormFunction",
        "gradcheck in eval, sums over three spatial axes",
        "function_in_eval_of_other_ranks: dweight of (N, C, D, H, W)",
        _TABLES_AND_IMAGES_BACK,
    ),
    (
        "BatchNormFunction",
        "eval: constants of the forward pass",
        "function_in_eval_then_training: dx",
        "buffer_kept_in_ctx",
    ),
    ("BatchNormFunction", "updates in place", "function_moves_statistics: running_mean after a step", "not_in_place"),
    *(
        (
            "BatchNormFunction",
            f"in the memory that others hold, {name}",
            f"function_moves_statistics: {name} after a step",
            "given_other_memory",
        )
        for name in ("running_mean", "running_var")
    ),
    (
        "BatchNormFunction",
        "unbiased into running_var",
        "function_moves_statistics: running_var after a step",
        "biased_remembered",
    ),
    (
        "BatchNormFunction",
        "momentum weighs the new value",
        "function_moves_statistics: running_mean after two",
        "weighs_the_old",
    ),
    (
        "BatchNormFunction",
        "updates when training only",
        "function_leaves_statistics_alone_in_eval: running_mean",
        "moved_in_eval",
    ),
    (
        "BatchNormFunction",
        "updates whether or not gradients are recorded",
        "function_moves_statistics: running_mean after one without gradients",
        [(_STEP, _STEP.replace("and", "and any(ctx.needs_input_grad) and"))],
    ),
    ("BatchNormFunction", "buffers hold no graph", "function_moves_statistics: they need gradients", _ALL_BY_AUTOGRAD),
    (
        "BatchNormFunction",
        "unbiased into running_var, tables",
        "function_moves_statistics_of_other_ranks: running_var of (N, C)",
        "biased_remembered",
    ),
    (
        "BatchNormFunction",
        "n counts all positions, in running_var",
        "function_moves_statistics_of_other_ranks: running_var of (N, C, D, H, W)",
        [("n = x[:, :1].numel()", "n = len(x) * x[0, 0].numel() // (x.shape[-1] if x.dim() == 5 else 1)")],
    ),
    (
        "BatchNormFunction",
        "the mean over all positions",
        "function_moves_statistics_of_other_ranks: running_mean of (N, C, L)",
        [(_MEAN_MOVES, _MEAN_MOVES.replace("* mean", "* (mean if x.dim() != 3 else x.mean((0, 2)) * x.shape[2])"))],
    ),
    (
        "BatchNormFunction",
        "momentum 0 keeps",
        "function_moves_statistics_all_the_way_or_not: running_mean with momentum 0",
        [(_STEP, _STEP + "\n                momentum = momentum or 0.1")],
    ),
    (
        "BatchNormFunction",
        "momentum 1 forgets",
        "function_moves_statistics_all_the_way_or_not: running_var with momentum 1",
        [(_STEP, _STEP + "\n                momentum = min(momentum, 0.99)")],
    ),
    (
        "BatchNormFunction",
        "both statistics stay in eval",
        "function_leaves_statistics_alone_in_eval: running_var",
        "batch_in_eval",
    ),
    ("BatchNormFunction", "weight None", "function_without_weight", "weight_required"),
    (
        "BatchNormFunction",
        "weight None: bias is added",
        "function_without_weight: y in eval, without weight",
        [("if bias is not None:\n            y", "if bias is not None and weight is not None:\n            y")],
    ),
    (
        "BatchNormFunction",
        "weight None: buffers move",
        "function_without_weight: running_var in training, without weight",
        [(_STEP, _STEP.replace("and", "and weight is not None and"))],
    ),
    ("BatchNormFunction", "bias None", "function_without_bias", "bias_required"),
    (
        "BatchNormFunction",
        "bias None: the weight scales",
        "function_without_bias: y in training, without bias",
        [("if weight is not None:\n            y", "if weight is not None and bias is not None:\n            y")],
    ),
    ("BatchNormFunction", "neither weight nor bias", "function_without_both", "weight_required"),
    (
        "BatchNormFunction",
        "neither weight nor bias: buffers move",
        "function_without_both: running_mean in training, without weight, bias",
        [(_STEP, _STEP.replace("and", "and (bias is not None or weight is not None) and"))],
    ),
    ("BatchNormFunction", "all None", "function_without_anything", "weight_required"),
    ("BatchNormFunction", "all None, in eval", "function_without_anything", "statistics_required"),
    ("BatchNormFunction", "buffers None", "function_without_statistics", "statistics_required"),
    (
        "BatchNormFunction",
        "buffers None: the batch couples in eval too",
        "function_without_statistics: dx in eval, without running_mean, running_var",
        [
            ("if ctx.batch_normalised:\n            dx", "if ctx.batch_normalised and ctx.training:\n            dx"),
            ("n = x[:, :1].numel()", "n, ctx.training = x[:, :1].numel(), training"),
        ],
    ),
    (
        "bn_modes",
        "looks, and changes nothing",
        "modes_of_nested_layers: modes as before, in training, inner part in eval",
        [("    return {", "    model.eval()\n    return {")],
    ),
    ("bn_modes", "each layer's own flag", "modes_of_nested_layers", "flag_of_the_model"),
    (
        "bn_modes",
        "each layer's own flag, whatever the model's",
        "modes_of_nested_layers: of a nested model the other way round",
        [('"train" if module.training', '"train" if module.training and model.training')],
    ),
    (
        "bn_modes",
        "looks, and changes nothing, in a model in eval",
        "modes_of_nested_layers: modes as before, the other way round",
        [("    return {", "    model.train()\n    return {")],
    ),
    ("bn_modes", "names as in named_modules()", "modes_of_nested_layers", "last_part_of_the_name"),
    ("bn_modes", "each layer's own flag, many", "modes_of_many_layers", "words_swapped"),
    ("bn_modes", "each kind, no other, many", "modes_among_other_layers", "images_only"),
    ("bn_modes", "a shared layer once", "modes_of_shared_layers", "shared_twice"),
    ("bn_modes", "every kind, Sync", "modes_of_every_kind: SyncBatchNorm", "three_kinds"),
    ("bn_modes", "every kind, Lazy", "modes_of_every_kind: LazyBatchNorm2d", "three_kinds"),
    *(
        (
            "bn_modes",
            f"every kind, {of}",
            f"modes_of_every_kind: BatchNorm1d without {of}",
            [("is_batchnorm(module)", f"is_batchnorm(module) and getattr(module, '{switch}', True)")],
        )
        for of, switch in (("weight and bias", "affine"), ("running statistics", "track_running_stats"))
    ),
    ("bn_modes", "every kind, course_lib's", "modes_of_every_kind: the course's BatchNorm", "torchs_only"),
    (
        "bn_modes",
        "every kind, listed by nobody",
        "modes_of_every_kind: a class derived from torch's _BatchNorm",
        [
            (
                "is_batchnorm(module)",
                "is_batchnorm(module) and (not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance("
                "module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, "
                "nn.modules.batchnorm._LazyNormBase)))",
            )
        ],
    ),
    ("bn_modes", "no other layer", "modes_of_every_kind: InstanceNorm2d", "every_norm"),
    ("bn_modes", "a model without → {}", "modes_of_special_models: of a model without such layers", "all_modules"),
    ("bn_modes", "the model itself", "modes_of_special_models: of a layer alone", "without_the_model"),
    *(
        (
            "evaluating",
            f"as it was before the block, {of}",
            f"modes_inside: in training before the block, of {of}",
            "eval_when_made",
        )
        for of in _MIXED
    ),
    *(("evaluating", f"eval inside, {of}", f"modes_inside: in training, of {of}", "no_grad_for_eval") for of in _MIXED),
    ("evaluating", "eval inside all parts", f"modes_inside: in training, of {_MIXED[1]}", "nothing_to_do_in_eval"),
    *(
        (
            "evaluating",
            f"it predicts inside, {of}",
            f"modes_inside: output of the first part of {of}",
            "no_grad_for_eval",
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"gradients are another switch, {of}",
            f"modes_inside: gradients are recorded, of {of}",
            "gradients_off_too",
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"parameters are not frozen, {of}",
            f"modes_inside: parameters that need gradients, of {of}",
            [("        yield model", "        model.requires_grad_(False)\n        yield model")],
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"each module's own mode back, {of}",
            f"modes_afterwards: in training afterwards, of {of}",
            "flag_of_the_model",
        )
        for of in _MIXED
    ),
    (
        "evaluating",
        "back into training",
        f"modes_afterwards: output of the first part of {_MIXED[0]} afterwards",
        "stays_in_eval",
    ),
    (
        "evaluating",
        "parts back into training",
        f"modes_afterwards: output of the first part of {_MIXED[1]} afterwards",
        "flag_of_the_model",
    ),
    *(
        (
            "evaluating",
            f"frozen parameters stay frozen, {of}",
            f"modes_afterwards: parameters that need gradients afterwards, of {of}",
            [("    finally:\n", "    finally:\n        model.requires_grad_(True)\n")],
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"whatever happened inside, {of}, train({training})",
            f"modes_after_being_switched_inside: in training afterwards, of {of}, after train({training}) inside",
            "flag_of_the_model",
        )
        for of in _MIXED
        for training in (True, False)
    ),
    (
        "evaluating",
        "one inside another",
        "modes_after_one_inside_another: in training after the inner one",
        "train_afterwards",
    ),
    (
        "evaluating",
        "one inside another, each with its own memory",
        "modes_after_one_inside_another: in training afterwards, of a model",
        [
            (
                "before = [(module, module.training) for module in model.modules()]",
                "for module in model.modules():\n        module.was_training = module.training",
            ),
            (_BACK, "        for module in model.modules():\n            module.training = module.was_training"),
        ],
    ),
    (
        "evaluating",
        "one inside another: frozen parameters stay frozen",
        "modes_after_one_inside_another: parameters that need gradients afterwards, of a model",
        [("    finally:\n", "    finally:\n        model.requires_grad_(False)\n")],
    ),
    *(
        (
            "evaluating",
            f"also after a {error}, {of}",
            f"modes_after_an_exception: in training after {error}, of {of}",
            "not_after_exceptions",
        )
        for of in _MIXED
        for error in ("KeyError", "RuntimeError", "KeyboardInterrupt")
    ),
    *(
        (
            "evaluating",
            f"also after an interrupt, {of}",
            f"modes_after_an_exception: in training after KeyboardInterrupt, of {of}",
            "not_after_interrupts",
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"the {error} comes through, {of}",
            f"modes_after_an_exception: error that comes through of {error}, {of}",
            [("    finally:\n", "    except BaseException:\n        pass\n    finally:\n")],
        )
        for of in _MIXED
        for error in ("KeyError", "RuntimeError", "KeyboardInterrupt")
    ),
    (
        "evaluating",
        "the exception comes through",
        f"modes_after_an_exception: error that comes through of KeyError, {_MIXED[0]}",
        "exception_swallowed",
    ),
    *(
        (
            "evaluating",
            f"back after an exception, {of}",
            f"modes_after_an_exception: output of the first part of {of} afterwards",
            "stays_in_eval",
        )
        for of in _MIXED
    ),
    *(
        (
            "evaluating",
            f"frozen parameters stay frozen after an exception, {of}",
            f"modes_after_an_exception: parameters that need gradients afterwards, of {of}",
            [("    finally:\n", "    finally:\n        model.requires_grad_(True)\n")],
        )
        for of in _MIXED
    ),
    *(("predict", f"eval, {of}", f"predictions: y of {of}", "batch_decides") for of in _MIXED),
    *(
        ("predict", f"however they are cut, {of}", f"predictions: y of {of}, in one batch", "batch_decides")
        for of in _MIXED
    ),
    (
        "predict",
        "all parts in eval",
        f"predictions: y of {_MIXED[1]}",
        [
            (
                "with evaluating(model), torch.no_grad():",
                "with evaluating(model) if model.training else torch.no_grad(), torch.no_grad():",
            )
        ],
    ),
    ("predict", "all batches", f"predictions: y of {_MIXED[0]}", "last_batch_only"),
    (
        "predict",
        "outputs of one number a sample",
        "predictions_of_any_rank: y of a model that gives numbers",
        [("torch.cat(outputs)", "torch.vstack(outputs)")],
    ),
    (
        "predict",
        "outputs that are maps",
        "predictions_of_any_rank: y of a model that gives maps",
        [("torch.cat(outputs)", "torch.cat([y.flatten(1) if y.dim() > 2 else y for y in outputs])")],
    ),
    ("predict", "any iterable", "predictions_from_a_generator", "lists_only"),
    ("predict", "no grad", "predictions_without_graph: y needs gradients", "graph_recorded"),
    (
        "predict",
        "no grad, though the batches need some",
        "predictions_without_graph: y needs gradients",
        "parameters_frozen",
    ),
    *(
        (
            "predict",
            f"nothing is moved between devices: {how}",
            "predictions_without_graph: fetched to the CPU",
            mistake,
        )
        for how, mistake in (
            ("no cpu()", "fetched_to_the_cpu"),
            ("nor by name", [("torch.cat(outputs)", 'torch.cat(outputs).to("cpu")')]),
            ("nor by keyword", [("torch.cat(outputs)", 'torch.cat(outputs).to(device="cpu")')]),
            ("nor through NumPy", [("torch.cat(outputs)", "torch.from_numpy(torch.cat(outputs).numpy())")]),
            ("nor into an array", [("torch.cat(outputs)", "torch.from_numpy(np.asarray(torch.cat(outputs)))")]),
        )
    ),
    (
        "predict",
        "the batches need the gradients they needed",
        "predictions_without_graph: the batch needs gradients afterwards",
        [("outputs.append(model(batch))", "outputs.append(model(batch.requires_grad_(False)))")],
    ),
    (
        "predict",
        "outputs as they are",
        "predictions_without_graph: y",
        [("torch.cat(outputs)", "torch.cat(outputs).softmax(1)")],
    ),
    *(
        ("predict", f"modes restored, {of}", f"predictions_leave_no_trace: in training afterwards, of {of}", mistake)
        for of, mistake in zip(_MIXED, ("stays_in_eval", "train_afterwards"), strict=True)
    ),
    *(
        ("predict", f"{name} stays, {of}", f"predictions_leave_no_trace: {name} afterwards, of {of}", "batch_decides")
        for of in _MIXED
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ),
    *(
        (
            "predict",
            f"parameters are not frozen, {of}",
            f"predictions_leave_no_trace: parameters that need gradients afterwards, of {of}",
            "parameters_frozen",
        )
        for of in _MIXED
    ),
    (
        "predict",
        "the batches stay",
        "predictions_leave_no_trace: inputs changed",
        [("outputs.append(model(batch))", "outputs.append(batch.copy_(model(batch)))")],
    ),
    (
        "predict",
        "gradients are recorded again",
        "predictions_leave_no_trace: gradients are recorded afterwards",
        "gradients_stay_off",
    ),
    (
        "predict",
        "gradients stay off where they were",
        "predictions_leave_no_trace: gradients are recorded afterwards where they were not",
        [("return torch.cat(outputs)", "torch.set_grad_enabled(True)\n    return torch.cat(outputs)")],
    ),
    *(
        (
            "predict",
            f"modes restored after a {error}, {of}",
            f"predictions_of_failing_data: in training after {error}, of {of}",
            "not_after_exceptions",
        )
        for of in _MIXED
        for error in ("KeyError", "OSError", "KeyboardInterrupt")
    ),
    *(
        (
            "predict",
            f"gradients are recorded after a {error}, {of}",
            f"predictions_of_failing_data: gradients are recorded after {error}, of {of}",
            "gradients_stay_off",
        )
        for of in _MIXED
        for error in ("KeyError", "OSError", "KeyboardInterrupt")
    ),
    *(
        (
            "predict",
            f"the {error} comes through, {of}",
            f"predictions_of_failing_data: error that comes through of {error}, {of}",
            _AS_FAR_AS_THEY_COME,
        )
        for of in _MIXED
        for error in ("KeyError", "OSError", "KeyboardInterrupt")
    ),
    ("clinic_no_eval", "no eval", "accuracy_of_a_training_model", "batch_decides"),
    *(
        (
            "clinic_no_eval",
            f"one sample is enough, {label}",
            f"accuracy_of_one_sample: accuracy where the label is {label}",
            mistake,
        )
        for label, mistake in (
            (1, [("== labels)", "!= labels)")]),
            (2, [("model(x).argmax(1)", "model(x).squeeze().argmax(1)")]),
        )
    ),
    ("clinic_no_eval", "the model leaves as it came", "accuracy_of_a_model_in_eval", "train_afterwards"),
    *(
        ("clinic_no_eval", f"statistics stay, {scenario}", f"{scenario}: {name} afterwards", "batch_decides")
        for scenario in ("accuracy_of_a_training_model", "accuracy_of_a_model_in_eval")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ),
    *(
        ("clinic_no_eval", f"{words}, {scenario}", f"{scenario}: {where}", [(_EVALUATED, f"{line}\n    {_EVALUATED}")])
        for scenario in ("accuracy_of_a_training_model", "accuracy_of_a_model_in_eval")
        for words, where, line in (
            ("x stays", "inputs changed", "x[0] += 1"),
            ("no parameter is frozen", "parameters that need gradients afterwards", "model.requires_grad_(False)"),
            ("gradients are recorded again", "gradients are recorded afterwards", "torch.set_grad_enabled(False)"),
        )
    ),
    ("clinic_plain_buffers", "in the state dict", "centring_layer: running_mean in the state dict", "not_saved"),
    ("clinic_plain_buffers", "no optimiser sees it", "centring_layer: parameters an optimiser sees", "parameter"),
    ("clinic_plain_buffers", "in place", "centring_layer: running_mean, held since before", "replaced"),
    (
        "clinic_plain_buffers",
        "the batch's mean in training",
        "centring_layer: y in training",
        [("return x - mean", "return x - self.running_mean")],
    ),
    ("clinic_plain_buffers", "the batch's mean moves with x", "centring_layer: dx in training", "mean_detached"),
    (
        "clinic_plain_buffers",
        "the running mean in eval",
        "centring_layer: y in eval",
        [("return x - self.running_mean", "return x - x.mean(0)")],
    ),
    (
        "clinic_plain_buffers",
        "a constant in eval",
        "centring_layer: dx in eval",
        [
            (
                "return x - self.running_mean",
                "return x - self.running_mean + 0 * x.sum(0) + x.mean(0) - x.detach().mean(0)",
            )
        ],
    ),
    (
        "clinic_plain_buffers",
        "the input stays where nothing is recorded",
        "centring_layer: inputs changed",
        [
            (
                "return x - self.running_mean",
                "return x - self.running_mean if torch.is_grad_enabled() else x.sub_(self.running_mean)",
            )
        ],
    ),
    (
        "clinic_plain_buffers",
        "the input stays",
        "centring_layer: inputs changed",
        [("return x - self.running_mean", "return x.data.sub_(self.running_mean) + (x - x.detach())")],
    ),
    (
        "clinic_plain_buffers",
        "in place, in the memory that a state dict holds",
        "centring_layer: running_mean, held since before",
        [
            (
                "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)",
                "self.running_mean.data = (1 - self.momentum) * self.running_mean + self.momentum * mean",
            )
        ],
    ),
    ("clinic_plain_buffers", "no graph", "centring_layer: it needs gradients", "graph_recorded"),
    ("clinic_plain_buffers", "keys of its own", "centring_layer: keys of the state dict", "counts_batches"),
    ("clinic_plain_buffers", "stays in eval", "centring_layer: running_mean after eval", "moves_in_eval"),
    (
        "clinic_plain_buffers",
        ".to() casts",
        "centring_layer_elsewhere: dtype after .to(torch.float16)",
        "plain_attribute",
    ),
    ("clinic_plain_buffers", ".to() moves and casts", "centring_layer_elsewhere: device after .to", "plain_attribute"),
    (
        "clinic_plain_buffers",
        "momentum is 0.1 by default",
        "centring_layer_by_default",
        [("momentum: float = 0.1", "momentum: float = 0.2")],
    ),
    ("clinic_graph_in_buffers", "no graph", "running_mean_of_tables: it needs gradients", "graph_recorded"),
    ("clinic_graph_in_buffers", "every position counts", "running_mean_of_maps", "batch_axis_only"),
    ("clinic_graph_in_buffers", "in place", "running_mean_of_tables: running_mean", "not_in_place"),
    ("clinic_graph_in_buffers", "the weight of the new value", "running_mean_of_maps: running_mean", "weighs_the_old"),
    (
        "clinic_graph_in_buffers",
        "x keeps its graph",
        "running_mean_of_tables: gradient of the caller",
        "caller_detached",
    ),
    *(
        ("clinic_graph_in_buffers", words, f"{scenario}: gradients are recorded afterwards", "gradients_stay_off")
        for words, scenario in (
            ("gradients are recorded again", "running_mean_of_tables"),
            ("gradients are recorded again, maps", "running_mean_of_maps"),
        )
    ),
    ("clinic_graph_in_buffers", "no graph, maps", "running_mean_of_maps: it needs gradients", "graph_recorded"),
    (
        "clinic_graph_in_buffers",
        "the caller's gradient",
        "running_mean_of_maps: gradient of the caller",
        [("with torch.no_grad():\n", "x.register_hook(lambda g: g / 2)\n    with torch.no_grad():\n")],
    ),
    ("clinic_graph_in_buffers", "x stays", "running_mean_of_maps: inputs changed", "input_overwritten"),
    (
        "clinic_graph_in_buffers",
        "one spatial axis",
        "running_mean_of_other_ranks: running_mean of (N, C, L)",
        _TABLES_OR_IMAGES,
    ),
    (
        "clinic_graph_in_buffers",
        "three spatial axes",
        "running_mean_of_other_ranks: running_mean of (N, C, D, H, W)",
        "batch_axis_only",
    ),
    ("clinic_grad_mode", "as it predicts", "gradient_of_the_input: result", "training_for_gradients"),
    ("clinic_grad_mode", "whatever the caller has switched", "gradient_of_the_input", "callers_switch"),
    *(
        ("clinic_grad_mode", f"{words}, {scenario}", f"{scenario}: {where}", mistake)
        for scenario in ("gradient_of_the_input", "gradient_of_the_input_of_a_model_in_eval")
        for words, where, mistake in (
            ("the gradient of the sum", "result", "averaged"),
            ("in no company", "result of two", "company_counts"),
            ("its sign", "result where gradients are off", "absolute"),
            ("without history", "the result needs gradients", "graph_kept"),
            ("x stays as it was", "x needs gradients", "input_marked"),
            (
                "x that needed gradients stays so",
                "x that needed gradients still does, and has none",
                [
                    ("leaf = x.detach().requires_grad_()", "leaf = x.requires_grad_()"),
                    (
                        "return torch.autograd.grad(model(leaf).sum(), leaf)[0]",
                        "found = torch.autograd.grad(model(leaf).sum(), leaf)[0]\n"
                        "        x.requires_grad_(False)\n        return found",
                    ),
                ],
            ),
            ("gradients of weight stay", "gradient of weight afterwards", "accumulated"),
            ("parameters are not frozen", "parameters that need gradients afterwards", "parameters_frozen"),
            ("gradients stay off", "gradients are recorded afterwards where they were not", "gradients_stay_on"),
            ("modes come back", "in training afterwards", "stays_in_eval"),
            ("the mean stays", "running_mean afterwards", "training_for_gradients"),
            ("the variance stays", "running_var afterwards", "company_counts"),
            ("the counter stays", "num_batches_tracked afterwards", "training_for_gradients"),
            (
                "gradients stay on",
                "gradients are recorded afterwards",
                _OFF_AFTERWARDS,
            ),
            (
                "x keeps its values",
                "inputs changed",
                [("leaf = x.detach()", "leaf = x.detach().mul_(2)")],
            ),
        )
    ),
    ("clinic_grad_mode", "no other gradients", "gradient_of_the_input: bias has a gradient", "accumulated"),
    ("clinic_momentum", "weight of the new value", "weighted_statistic: with momentum 0", "weighs_the_old"),
    ("clinic_momentum", "a new tensor", "weighted_statistic: inputs changed", "in_place"),
    (
        "clinic_momentum",
        "a new tensor, though nothing is new",
        "weighted_statistic: new tensors",
        [("return (1 - momentum)", "if momentum == 0:\n        return running\n    return (1 - momentum)")],
    ),
    ("clinic_momentum", "both values are weighed", "weighted_statistic: result", "no_decay"),
    ("clinic_momentum", "1 forgets", "weighted_statistic: with momentum 1", "constant_weight"),
    ("clinic_biased_var", "unbiased", "running_var_of_table: running_var", "divided_by_n"),
    ("clinic_biased_var", "n counts positions", "running_var_of_maps: running_var", "bessel_by_batch_size"),
    ("clinic_biased_var", "in place", "running_var_of_table: running_var", "not_in_place"),
    ("clinic_biased_var", "the weight of the new value", "running_var_of_maps: running_var", "weighs_the_old"),
    ("clinic_biased_var", "no graph", "running_var_of_table: it needs gradients", "graph_recorded"),
    ("clinic_biased_var", "no graph, maps", "running_var_of_maps: it needs gradients", "graph_recorded"),
    *(
        (
            "clinic_biased_var",
            f"gradients are recorded again, {scenario}",
            f"{scenario}: gradients are recorded afterwards",
            [("with torch.no_grad():", "torch.set_grad_enabled(False)\n    if True:")],
        )
        for scenario in ("running_var_of_table", "running_var_of_maps")
    ),
    ("clinic_biased_var", "x stays", "running_var_of_table: inputs changed", "input_overwritten"),
    ("clinic_biased_var", "x stays, maps", "running_var_of_maps: inputs changed", "input_overwritten"),
    (
        "clinic_biased_var",
        "one spatial axis",
        "running_var_of_other_ranks: running_var of (N, C, L)",
        _TABLES_OR_IMAGES,
    ),
    (
        "clinic_biased_var",
        "three spatial axes",
        "running_var_of_other_ranks: running_var of (N, C, D, H, W)",
        "bessel_by_batch_size",
    ),
    ("accepts", "rejects wrong layers", "verdicts", "accepts_everything"),
    ("accepts", "eval", "verdicts", "never_in_eval"),
    ("accepts", "the mode alone decides", "verdicts", "gradients_follow_the_mode"),
    ("accepts", "which variance", "verdicts", "large_batches_only"),
    ("accepts", "the state dict", "verdicts", "state_unseen"),
    ("accepts", "gradients", "verdicts", "no_gradients"),
    ("accepts", "takes right layers, however written", "verdicts", "exact_equality"),
]

# --- the clinic -----------------------------------------------------------------------------------------------------

PATIENTS = {
    "clinic_no_eval": "batch_decides",
    "clinic_plain_buffers": "plain_attribute",
    "clinic_graph_in_buffers": "graph_recorded",
    "clinic_grad_mode": "training_for_gradients",
    "clinic_momentum": "weighs_the_old",
    "clinic_biased_var": "divided_by_n",
}


@pytest.mark.parametrize("attribute", PATIENTS)
def test_a_patient_as_it_comes_in_scores_nothing_and_is_diagnosed(attribute):
    [mistake] = [m for m in catalogue(TOPIC) if (m.piece, m.name) == (f"modes.{attribute}", PATIENTS[attribute])]
    verdict = check(mistake.piece, mistake.implementation())
    assert verdict.points == 0 and [row.hint for row in verdict.rows] == [mistake.hint]


# --- accepts --------------------------------------------------------------------------------------------------------

PIECE = find("modes.accepts")
FAMILIES = [(theme, family) for theme, families in POOL.items() for family in families]


def verdict_of(implementation, seed):
    return judge(PIECE, observe(PIECE, implementation, seed), seed)


@pytest.mark.parametrize("name", RIGHT["modes.accepts"])
@pytest.mark.parametrize("theme", POOL)
def test_a_right_test_rejects_every_layer_the_seed_may_choose(theme, name):
    said = RIGHT["modes.accepts"][name]
    layers = [
        (family, i, layer_of(text_of(*WRONG[family][i]))) for family, numbers in POOL[theme].items() for i in numbers
    ]
    assert [(family, i) for family, i, layer in layers if said(layer)] == []


@pytest.mark.parametrize("name", RIGHT["modes.accepts"])
def test_a_right_test_takes_every_right_layer(name):
    styles = [style for row in RIGHT_STYLES for style in row]
    assert [style for style in styles if not RIGHT["modes.accepts"][name](layer_of(text_of(style)))] == []


def test_the_public_examples_are_what_they_are_said_to_be():
    assert all(accepts(cls) for cls in modes_examples.RIGHT)
    assert set(modes_examples.WRONG) == set(THEMES) == set(POOL)
    assert not any(accepts(cls) for cls in modes_examples.WRONG.values())


@pytest.mark.parametrize("seed", [PUBLIC_SEED, 1, 2])
def test_what_is_asked_says_nothing_but_what_it_does(seed):
    asked = modes_layers.asked(_Asking(seed))
    assert {cls.__name__ for _, cls in asked} == {cls.__qualname__ for _, cls in asked} == {"Layer"}
    assert {cls.__module__ for _, cls in asked} == {"layers"}
    truth = [entry["fact"] for entry in expectation(PIECE, seed).truth["verdicts"]["seen"].values()]
    # Right ones stand neither first nor last by a rule, and under more than one theme over the seeds.
    assert len(truth) == len(asked) and truth.count("accepted") == 3


class _Asking:
    """What `asked` needs of a case, always taking the first of what there is."""

    def __init__(self, seed):
        self.seed = seed

    def integer(self, low, high):
        return low

    def choice(self, options):
        return options[0]


def test_seeds_ask_in_other_orders_and_about_other_layers():
    orders = [[theme for theme, _ in unseen_layers(seed)] for seed in (1, 2, 3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    texts = [{source for _, source in unseen_layers(seed)} for seed in (1, 2)]
    assert texts[0] != texts[1] and unseen_layers(1) == unseen_layers(1)


def test_the_texts_that_are_sent_name_neither_style_nor_fault():
    words = re.compile(r"\b(right|mistake|fault|Plain|Rows|Functional|Handmade|Welford|Doubles)\b")
    assert [
        source for seed in (1, 2) for _, source in unseen_layers(seed) if words.search(source) or '"""' in source
    ] == []


def test_what_is_sent_fits_into_an_environment():
    assert max(len(pack(unseen_layers(seed))) for seed in range(1, 9)) < 30_000


def test_a_kernel_asks_about_what_was_sent(monkeypatch):
    monkeypatch.setattr("course_lib.checks.modes_layers.unseen_layers", lambda seed: pytest.fail("asked the catalogue"))
    source = "class Layer(nn.BatchNorm2d):\n    mark = 7\n"
    monkeypatch.setitem(os.environ, GRADING_LAYERS, pack([("state", source), ("eval", source)]))
    asked = modes_layers.asked(_Asking(5))
    assert [(theme, cls.mark) for theme, cls in asked] == [("state", 7), ("eval", 7)]
    bundle = observe(PIECE, lambda cls: issubclass(cls, nn.BatchNorm2d), 5)
    assert bundle["scenarios"]["verdicts"]["seen"] == {f"{t}: layer 1": {"fact": "accepted"} for t in ("state", "eval")}


def test_the_public_seed_asks_about_the_public_examples_whatever_was_sent(monkeypatch):
    monkeypatch.setitem(os.environ, GRADING_LAYERS, pack([]))
    assert len(modes_layers.asked(_Asking(PUBLIC_SEED))) == len(modes_examples.RIGHT) + len(modes_examples.WRONG)


@pytest.mark.parametrize("seed", [PUBLIC_SEED, 3])
def test_no_points_where_one_right_layer_is_rejected(seed):
    truth = expectation(PIECE, seed).truth["verdicts"]["seen"]
    for wanted in [name for name, entry in truth.items() if entry == {"fact": "accepted"}]:
        seen = {**truth, wanted: {"fact": "rejected"}}
        assert judge(PIECE, _bundle(seed, seen), seed).points == 0


@pytest.mark.parametrize("seed", [PUBLIC_SEED, 3])
def test_a_wrong_layer_that_passes_costs_its_area(seed):
    truth = expectation(PIECE, seed).truth["verdicts"]["seen"]
    for name in [name for name, entry in truth.items() if entry == {"fact": "rejected"}]:
        for given in ({"fact": "accepted"}, {"fact": "raised KeyError"}, {}):
            verdict = judge(PIECE, _bundle(seed, {**truth, name: given}), seed)
            assert verdict.points == PIECE.max_points - 0.5
            [red] = [row for row in verdict.rows if not row.passed]
            assert red.message.startswith(name) and verdict.rows[THEMES.index(name.partition(":")[0])] is red


def _bundle(seed, seen):
    entry = expectation(PIECE, seed).truth["verdicts"]
    return json.loads(json.dumps({"scenarios": {"verdicts": {**entry, "seen": seen}}}))


@pytest.mark.parametrize("constant", [True, False])
def test_a_test_that_says_always_the_same_scores_nothing(constant):
    assert [verdict_of(lambda cls: constant, seed).points for seed in (PUBLIC_SEED, 1, 2)] == [0, 0, 0]


@pytest.mark.parametrize("result", [None, 1, "accepted"])
def test_what_is_no_answer_is_told_so(result):
    verdict = verdict_of(lambda cls: result, PUBLIC_SEED)
    assert verdict.points == 0 and "expected True or False to be returned, got" in verdict.messages[0]


def test_an_answer_may_be_numpys_or_a_tensor():
    assert verdict_of(lambda cls: torch.tensor(accepts(cls)), PUBLIC_SEED).passed


def test_a_test_that_sorts_by_ancestry_fails_unseen_layers():
    said = verdict_of(lambda cls: issubclass(cls, nn.modules.batchnorm._BatchNorm), 1)
    assert said.points == 0


def test_a_test_that_remembers_what_it_was_asked_gains_nothing():
    # What holds for one seed's order holds for no other's.
    order = iter([entry == {"fact": "accepted"} for entry in expectation(PIECE, 1).truth["verdicts"]["seen"].values()])
    assert verdict_of(lambda cls: next(order, False), 2).points == 0
