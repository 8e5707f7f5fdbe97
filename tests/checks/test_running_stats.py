"""Problem set 2: what every topic is tested for, and that the checks are blind to what a GPU would not mind."""

import pytest
import torch

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.devices import DEVICES
from tests.right_answers.running_stats import RIGHT

TOPIC = "running_stats"
_VAR_IN = "running_var.mul_(1 - momentum).add_(momentum * var)"
# Places in the layer that clauses break.
_MEAN_IN = "self.running_mean.mul_(1 - momentum).add_(momentum * mean)"
_LAYER_VAR_IN = "self.running_var.mul_(1 - momentum).add_(momentum * unbiased)"
_UNBIASED = "unbiased = var.flatten() * (n / (n - 1))"
_BATCH_VAR = "var = centred.square().mean(axes, keepdim=True)"
_CENTRED = "centred = shifted - offset"
_CENTRED_IN_EVAL = "centred = wide - self.running_mean.view(per_channel)"
_ROOT = "y = centred * (var + self.eps).rsqrt()"
_CLIPPED = "y = (centred * (var + self.eps).rsqrt()).clamp(min=0.0 if {} else -1e9)"
_SCALED = "if self.weight is not None:"
_SHIFTED = "if self.bias is not None:"
_SHIFT = "y = y + self.bias.view(per_channel)"
_RESULT = "return y.to(x.dtype)"
_DEF_EXTRA = "    def extra_repr"
_RESET_BY_TO = """    def _apply(self, fn, *args, **kwargs):
        moved = super()._apply(fn, *args, **kwargs)
        moved.weight.data = moved.weight.data.to(torch.bfloat16).to(moved.weight.dtype)
        return moved

"""
CLAUSES = [
    ("update_running_stats", "momentum weighs the new value", "update_by_table: running_mean", "momentum_on_the_old"),
    ("update_running_stats", "the unbiased variance", "update_by_table: running_var", "biased_variance"),
    ("update_running_stats", "over positions too", "update_by_maps: running_mean", "batch_axis_only"),
    ("update_running_stats", "n counts values", "update_by_maps: running_var", "bessel_by_batch_size"),
    ("update_running_stats", "in place", "update_by_maps: running_var", "variance_in_a_new_tensor"),
    (
        "update_running_stats",
        "in place, for whoever shares the memory",
        "update_by_one_image: buffers in the memory they had",
        "given_other_memory",
    ),
    ("update_running_stats", "one sample of many values", "update_by_one_image", [("if n == 1", "if len(x) == 1")]),
    ("update_running_stats", "two values per channel are enough", "update_by_two_values", [("n == 1", "n <= 2")]),
    ("update_running_stats", "any rank: sequences", "update_by_sequences", "tables_and_images_only"),
    ("update_running_stats", "any rank: volumes", "update_by_volumes", "tables_and_images_only"),
    (
        "update_running_stats",
        "the variance at any rank",
        "update_by_volumes: what came into running_var, as shares of its sum",
        [(_VAR_IN, f"{_VAR_IN[:-1]} if x.dim() < 5 else var.mean())")],
    ),
    (
        "update_running_stats",
        "a network's output moves them too",
        "update_by_output_of_a_network: running_mean",
        [("if n == 0:", "if n == 0 or x.requires_grad:")],
    ),
    (
        "update_running_stats",
        "no autograd history",
        "update_by_output_of_a_network: buffers with autograd history",
        "with_history",
    ),
    (
        "update_running_stats",
        "returns None",
        "update_by_output_of_a_network: returned",
        [(_VAR_IN, f"return {_VAR_IN}")],
    ),
    (
        "update_running_stats",
        "x stays as it is",
        "update_by_output_of_a_network: inputs changed",
        "input_centred_in_place",
    ),
    (
        "update_running_stats",
        "x stays as it is where it needs no gradient",
        "update_by_output_of_a_network: inputs changed",
        [("shifted = wide - pivot", "shifted = wide - pivot if x.requires_grad else wide.sub_(pivot.clone())")],
    ),
    (
        "update_running_stats",
        "x keeps its graph",
        "update_by_output_of_a_network: x needs gradients afterwards",
        [("    with torch.no_grad():", "    x.detach_()\n    with torch.no_grad():")],
    ),
    (
        "update_running_stats",
        "x still needs its gradient",
        "update_by_output_of_a_network: x needs gradients afterwards",
        [("    with torch.no_grad():", "    x = x.requires_grad_(not x.is_leaf)\n    with torch.no_grad():")],
    ),
    (
        "update_running_stats",
        "gradients stay off where they were",
        "update_by_output_of_a_network: gradients are recorded afterwards where they were not",
        [(_VAR_IN, f"{_VAR_IN}\n    torch.set_grad_enabled(True)")],
    ),
    ("update_running_stats", "any memory layout", "update_by_volumes", "view_of_the_batch"),
    (
        "update_running_stats",
        "float32 statistics of half input",
        "update_by_half_input: running_mean after bfloat16",
        "half_statistics",
    ),
    (
        "update_running_stats",
        "the variance of half input",
        "update_by_half_input: running_var after float16",
        [(_VAR_IN, f"{_VAR_IN[:-1]} if x.dtype != torch.float16 else 1)")],
    ),
    *(
        (
            "update_running_stats",
            f"{name} stays float32",
            f"update_by_half_input: dtype of {name} after float16",
            [(_VAR_IN, f"{_VAR_IN}\n        {name}.data = {name}.data.to(x.dtype)")],
        )
        for name in ("running_mean", "running_var")
    ),
    (
        "update_running_stats",
        "the mean when it is large",
        "update_far_from_zero: running_mean",
        [("mean = (pivot + offset).flatten()", "mean = (pivot + offset).flatten().bfloat16().to(wide.dtype)")],
    ),
    *(
        (
            "update_running_stats",
            f"momentum {momentum}",
            f"update_all_the_way_or_not: {name} with momentum {momentum}",
            [("with torch.no_grad():", f"momentum = {wrong}\n    with torch.no_grad():")],
        )
        for name in ("running_mean", "running_var")
        for momentum, wrong in ((0, "momentum or 0.1"), (1, "min(momentum, 0.99)"))
    ),
    (
        "update_running_stats",
        "gradients are recorded afterwards",
        "update_by_output_of_a_network: gradients are recorded afterwards",
        [("with torch.no_grad():", "torch.set_grad_enabled(False)\n    if True:")],
    ),
    *(
        (
            "update_running_stats",
            f"float32 statistics of {half} maps",
            f"update_by_half_maps: running_mean after {half} maps",
            [("wide = x.to(", "wide = x if x.dim() == 4 else x.to(")],
        )
        for half in ("float16", "bfloat16")
    ),
    (
        "update_running_stats",
        "accurate when |mean| is large: below zero as well",
        "update_far_from_zero: running_var",
        [
            (
                _VAR_IN,
                _VAR_IN.replace(
                    "* var", "* torch.where(mean > 0, var, wide.square().mean(axes) - wide.mean(axes) ** 2)"
                ),
            )
        ],
    ),
    ("update_running_stats", "accurate when the mean is large", "update_far_from_zero", "one_pass_variance"),
    ("ema_after", "where the average stands", "average_after_steps", "linear"),
    (
        "ema_after",
        "after however many steps",
        "average_after_many_steps",
        [("return float(", "steps = min(steps, 50)\n    return float(")],
    ),
    ("ema_after", "from any start", "average_after_steps", "start_forgotten"),
    ("ema_after", "after no step", "average_at_extremes: after 0 steps", "one_step_too_many"),
    ("ema_after", "with momentum 1", "average_at_extremes: after 2 steps with momentum 1", "momentum_on_the_old"),
    ("ema_after", "a float", "average_at_extremes: a Python float", "tensor_returned"),
    ("steps_to_forget", "no more than the fraction is left", "steps_rounded_up", "rounded_down"),
    ("steps_to_forget", "the smallest number of steps", "steps_rounded_up", "one_step_more"),
    (
        "steps_to_forget",
        "with a large momentum",
        "few_steps",
        [("math.log1p(-momentum)", "-min(-math.log1p(-momentum), momentum + 0.1)")],
    ),
    ("steps_to_forget", "with momentum 1", "steps_at_the_edge", "no_special_case"),
    ("steps_to_forget", "an int", "steps_at_the_edge: an int", "float_returned"),
    ("torch_momentum", "Keras", "momentum_of_other_libraries: keras", "not_translated"),
    ("torch_momentum", "flax", "momentum_of_other_libraries: flax", "flax_like_torch"),
    ("torch_momentum", "ONNX", "momentum_of_other_libraries: onnx", "onnx_like_torch"),
    ("torch_momentum", "PyTorch", "momentum_of_torch: torch", "always_translated"),
    (
        "torch_momentum",
        "a float",
        "momentum_of_torch: a Python float",
        [("float(1 - momentum)", "torch.tensor(1 - momentum)")],
    ),
    ("torch_momentum", "other conventions are refused", "momentum_of_torch", "unknown_accepted"),
    (
        "torch_momentum",
        "one whole name is asked for",
        "momentum_of_torch: error for ''",
        [('in ("keras", "flax", "onnx")', 'in "keras, flax, onnx"')],
    ),
    ("torch_momentum", "with a ValueError", "momentum_of_torch", "key_error"),
    ("population_stats", "the unbiased variance", "population_of_a_table: var", "biased_variance"),
    (
        "population_stats",
        "the mean",
        "population_of_a_table: mean",
        [("return pivot[:, 0] + mean", "return pivot[:, 0] + 0.9 * mean")],
    ),
    (
        "population_stats",
        "n as it is",
        "population_of_a_table: n",
        [("m2 / (n - 1), n", "m2 / (n - 1), n - 1")],
    ),
    *(
        ("population_stats", f"two values are enough: {name}", f"population_of_two_values: {name}", [(old, new)])
        for name, old, new in (
            ("mean", "if n < 2:", "if n < 3:"),
            ("var", "m2 / (n - 1), n", "m2 / max(n - 1, 2), n"),
            ("n", "m2 / (n - 1), n", "m2 / (n - 1), max(n, 3)"),
        )
    ),
    (
        "population_stats",
        "batches of other sizes and ranks",
        "population_of_uneven_maps",
        "joined_as_they_are",
    ),
    (
        "population_stats",
        "gradients are recorded afterwards",
        "population_of_other_ranks: gradients are recorded afterwards",
        [("    with torch.no_grad():", "    torch.set_grad_enabled(False)\n    if True:")],
    ),
    ("population_stats", "n counts values per channel", "population_of_maps: n", "samples_counted"),
    *(
        (
            "population_stats",
            f"{name} of shape (C,) of one channel too",
            f"population_of_one_channel: {name}",
            [("return pivot[:, 0] + mean, m2 / (n - 1), n", made)],
        )
        for name, made in (
            ("mean", "return (pivot[:, 0] + mean).squeeze(), m2 / (n - 1), n"),
            ("var", "return pivot[:, 0] + mean, (m2 / (n - 1)).squeeze(), n"),
        )
    ),
    (
        "population_stats",
        "n of one channel",
        "population_of_one_channel: n",
        [("m2 / (n - 1), n", "m2 / (n - 1), len(m2) if len(m2) == 1 else n")],
    ),
    *(
        (
            "population_stats",
            f"float64 keeps its digits, {name}",
            f"population_of_float64_far_from_zero: {name}",
            [(".flatten(1).double()", ".flatten(1).float().double()")],
        )
        for name in ("mean", "var, as shares of its sum")
    ),
    (
        "population_stats",
        "accurate when |mean| is large: below zero as well",
        "population_far_from_zero: var",
        [
            (
                "batch_m2 = (shifted - batch_mean[:, None]).square().sum(1)",
                "batch_m2 = (shifted - batch_mean[:, None]).square().sum(1) * torch.where(pivot[:, 0] > 0, 1, 1.1)",
            )
        ],
    ),
    ("population_stats", "exact for every split", "population_of_uneven_batches: var", "average_of_variances"),
    ("population_stats", "counts what is between batches", "population_of_uneven_maps: var", "weighted_variances"),
    ("population_stats", "weighted by count", "population_of_uneven_batches: mean", "mean_of_means"),
    ("population_stats", "an empty batch", "population_of_odd_batches: mean", "empty_batch_counted"),
    (
        "population_stats",
        "an empty batch that comes first",
        "population_of_odd_batches: mean",
        [
            ("if size == 0:", "if size == 0 and pivot is not None:"),
            ("pivot = rows[:, :1].clone()", "pivot = rows.sum(1, keepdim=True) / max(size, 1)"),
            ("mean + delta * (size / total)", "mean + delta * (size / max(total, 1))"),
            ("(n * size / total)", "(n * size / max(total, 1))"),
        ],
    ),
    ("population_stats", "a batch of one value", "population_of_odd_batches: var", "variance_of_one_value"),
    ("population_stats", "a batch of one value counts", "population_of_odd_batches: n", "one_value_skipped"),
    ("population_stats", "batches from a generator", "population_of_odd_batches", "length_asked"),
    (
        "population_stats",
        "float64 tensors",
        "population_of_other_ranks: dtypes of float16 sequences",
        "float32_returned",
    ),
    ("population_stats", "n is an int", "population_of_other_ranks: n of float32 volumes", "tensor_count"),
    (
        "population_stats",
        "any rank",
        "population_of_other_ranks: mean of bfloat16 volumes",
        [(".flatten(1)", "[..., 0].reshape(channels, -1)")],
    ),
    (
        "population_stats",
        "the variance at any rank",
        "population_of_other_ranks: var of float32 sequences, as shares of its sum",
        [(".flatten(1)", "[..., 0].reshape(channels, -1)")],
    ),
    (
        "population_stats",
        "the data stay",
        "population_of_other_ranks: inputs changed",
        [("if size == 0:", "batch.zero_()\n            if size == 0:")],
    ),
    (
        "population_stats",
        "the data stay where widening copies nothing",
        "population_of_other_ranks: inputs changed",
        "batch_centred_in_place",
    ),
    ("population_stats", "any memory layout", "population_of_other_ranks", "view_of_the_batch"),
    ("population_stats", "accurate when the mean is large", "population_far_from_zero: var", "float32_sums"),
    (
        "population_stats",
        "and when batches are merged",
        "population_far_from_zero: var",
        [
            (
                "(n * size / total)\n",
                "(n * size / total)\n            m2 = ((m2 / total + 1e8).float() - 1e8).double() * total\n",
            )
        ],
    ),
    # --- the layer: training
    ("BatchNorm", "biased variance normalises", "training_on_table: y", "unbiased_normalises"),
    ("BatchNorm", "eps is the second argument, inside the root", "training_on_table: y", "eps_outside_root"),
    (
        "BatchNorm",
        "momentum is the third argument",
        "statistics_with_momentum",
        [
            (
                "eps: float = 1e-5,\n        momentum: float | None = 0.1",
                "momentum: float | None = 0.1,\n        eps: float = 1e-5",
            ),
        ],
    ),
    ("BatchNorm", "statistics over positions too", "training_on_maps: y", "batch_axis_only"),
    ("BatchNorm", "gradient through the statistics", "training_on_maps: gradient of x", "statistics_detached"),
    ("BatchNorm", "gradient of weight", "training_on_maps: gradient of weight", "no_scale_and_shift"),
    ("BatchNorm", "gradient of bias", "training_on_maps: gradient of bias", "no_scale_and_shift"),
    (
        "BatchNorm",
        "the input stays",
        "training_on_table: inputs changed",
        [
            ("wide = x.to(torch.promote_types(x.dtype, torch.float32))", "x.data.mul_(2)\n        wide = x.float()"),
        ],
    ),
    *(
        ("BatchNorm", f"the input stays where nothing is recorded, {where}", f"{where}: inputs changed", mistake)
        for where, mistake in (
            ("training_on_table", "input_overwritten"),
            ("training_on_maps", "input_overwritten"),
            (
                "training_on_maps",
                [("shifted = wide - pivot", "shifted = wide - pivot if x.requires_grad else wide.sub_(pivot.clone())")],
            ),
            ("eval_on_table", "input_overwritten"),
            ("eval_on_maps", "input_overwritten"),
        )
    ),
    *(
        ("BatchNorm", f"{words}, {where}", f"{where}: {what}", [(old, new)])
        for where in ("training_with_frozen_parameters", "eval_with_frozen_parameters")
        for words, what, old, new in (
            (
                "a frozen weight does not take the bias along",
                "y where weight needs none",
                _SHIFTED,
                "if self.bias is not None and self.weight.requires_grad:",
            ),
            (
                "a frozen bias is added",
                "y where bias needs none",
                _SHIFTED,
                "if self.bias is not None and self.bias.requires_grad:",
            ),
            (
                "no gradient of x, those of weight and bias",
                "gradient of weight where x needs none",
                _RESULT,
                "return (y if x.requires_grad else y.detach() + 0 * (self.weight + self.bias).sum()).to(x.dtype)",
            ),
            (
                "frozen parameters scale and shift",
                "y where weight and bias needs none",
                _SCALED,
                "if self.weight is not None and (self.weight.requires_grad or self.bias.requires_grad):",
            ),
        )
    ),
    ("BatchNorm", "one sample of many values", "training_on_one_image", [("if n == 1:", "if len(x) == 1:")]),
    ("BatchNorm", "two values are enough", "training_on_two_values", [("if n == 1:", "if n <= 2:")]),
    ("BatchNorm", "rank 3", "layer_on_sequences", "tables_and_images_only"),
    ("BatchNorm", "rank 5", "layer_on_volumes", "tables_and_images_only"),
    ("BatchNorm", "ranks in eval", "layer_on_sequences", "positions_on_the_last_axes"),
    *(
        ("BatchNorm", f"{words}, rank {rank}", f"{where}: {what}", [(old, new.format(rank))])
        for rank, where in ((3, "layer_on_sequences"), (5, "layer_on_volumes"))
        for words, what, old, new in (
            ("scale", "spreads of y, as shares of their sum", _SCALED, "if x.dim() != {}:"),
            ("shift", "mean of y", _SHIFTED, "if x.dim() != {}:"),
            ("gradient of x", "gradient of x, of spread 1", _CENTRED, "centred = shifted - offset.detach()"),
            ("running_mean", "running_mean", _MEAN_IN, "self.running_mean.mul_(x.dim() != {}).add_(momentum * mean)"),
            (
                "running_var",
                "what came into running_var, as shares of its sum",
                _LAYER_VAR_IN,
                "self.running_var.mul_(0.5).add_(0.5 * (unbiased if x.dim() != {} else unbiased.mean()))",
            ),
            (
                "the number of values",
                "y, less that of a table of them",
                _BATCH_VAR,
                _BATCH_VAR + " * (1 if x.dim() != {} else 2)",
            ),
            (
                "the number of values in running_var",
                "running_var, less that of a table of them",
                _UNBIASED,
                _UNBIASED + " * (1 if x.dim() != {} else 2)",
            ),
            (
                "eval",
                "y in eval",
                _CENTRED_IN_EVAL,
                "centred = wide - self.running_mean.view(per_channel) * (x.dim() != {})",
            ),
        )
    ),
    # --- what it remembers
    ("BatchNorm", "momentum weighs the new value", "statistics_after_batches: running_mean", "momentum_on_the_old"),
    ("BatchNorm", "unbiased running_var", "statistics_after_batches: running_var", "biased_variance_remembered"),
    ("BatchNorm", "in place", "statistics_after_batches: replaced by new tensors", "buffers_replaced"),
    (
        "BatchNorm",
        "the counter in place too",
        "statistics_after_batches: replaced by new tensors",
        [("self.num_batches_tracked.add_(1)", "self.num_batches_tracked = self.num_batches_tracked + 1")],
    ),
    (
        "BatchNorm",
        "in the memory that others hold",
        "statistics_after_batches: replaced by new tensors",
        [(_MEAN_IN, "self.running_mean.data = self.running_mean * (1 - momentum) + momentum * mean")],
    ),
    (
        "BatchNorm",
        "the counter in its memory too",
        "statistics_after_batches: replaced by new tensors",
        [("self.num_batches_tracked.add_(1)", "self.num_batches_tracked.data = self.num_batches_tracked + 1")],
    ),
    ("BatchNorm", "no history", "statistics_after_batches: with autograd history", "with_history"),
    ("BatchNorm", "batches are counted", "statistics_after_batches: batches counted", "batches_not_counted"),
    ("BatchNorm", "momentum is 0.1 by default", "statistics_with_default_momentum", "default_momentum"),
    *(
        ("BatchNorm", f"a weight of either sign, or zero, {where}", f"{where}: y", [(_SCALED, made)])
        for where in ("training_on_maps", "eval_on_maps")
        for made in ("y = y * (-1) ** (self.weight.view(per_channel) < 0) if self.affine else y\n        " + _SCALED,)
    ),
    (
        "BatchNorm",
        "gradients stay off where they were",
        "statistics_without_gradients: gradients are recorded afterwards where they were not",
        [(_RESULT, f"torch.set_grad_enabled(True)\n        {_RESULT}")],
    ),
    ("BatchNorm", "updates without gradients", "statistics_without_gradients", "no_update_without_gradients"),
    ("BatchNorm", "momentum 0 is not None", "statistics_with_momentum_zero", "zero_is_none"),
    # --- eval
    ("BatchNorm", "running statistics normalise", "eval_on_table: y", "batch_normalises_in_eval"),
    ("BatchNorm", "and stay", "eval_on_maps: changed in eval", "eval_remembers"),
    ("BatchNorm", "gradient in eval", "eval_on_maps: gradient of x", "batch_normalises_in_eval"),
    ("BatchNorm", "eps is 1e-5 by default", "eval_with_default_eps", "keras_eps"),
    (
        "BatchNorm",
        "eps 0 is an eps",
        "eval_with_default_eps: y with eps 0",
        [("self.eps = eps", "self.eps = eps or 1e-5")],
    ),
    ("BatchNorm", "one value in eval", "eval_of_one_value", "one_value_refused_in_eval"),
    # --- momentum=None
    ("BatchNorm", "cumulative mean", "average_of_uneven_batches", "none_is_the_default"),
    ("BatchNorm", "cumulative from the counter", "average_of_a_loaded_layer", "none_counts_in_python"),
    ("BatchNorm", "cumulative variance", "average_of_variances", "none_is_off_by_one"),
    ("BatchNorm", "cumulative in place", "average_of_one_batch: replaced by new tensors", "buffers_replaced"),
    (
        "BatchNorm",
        "cumulative, eval",
        "average_in_eval: y, less that of a layer with a momentum",
        [("if self.training or self.running_mean is None:", "if self.training or self.momentum is None:")],
    ),
    (
        "BatchNorm",
        "cumulative, eval moves nothing",
        "average_in_eval: changed in eval",
        [("if self.training or self.running_mean is None:", "if self.training or self.momentum is None:")],
    ),
    (
        "BatchNorm",
        "cumulative and unbiased",
        "average_of_one_batch",
        [(_UNBIASED, "unbiased = var.flatten() * (n / (n - (self.momentum is not None)))")],
    ),
    # --- switches
    ("BatchNorm", "affine=False", "layer_without_parameters: parameters", "affine_ignored"),
    (
        "BatchNorm",
        "affine=False, y",
        "layer_without_parameters: y, brought to spread 1",
        [(_ROOT, _CLIPPED.format("self.weight is None"))],
    ),
    (
        "BatchNorm",
        "affine=False, no shift",
        "layer_without_parameters: mean of y",
        [(_SHIFTED, "if True:"), (_SHIFT, "y = y + (1 if self.bias is None else self.bias.view(per_channel))")],
    ),
    (
        "BatchNorm",
        "affine=False remembers",
        "layer_without_parameters: moved in training",
        [("if self.track_running_stats and self", "if self.affine and self")],
    ),
    ("BatchNorm", "affine=False in eval", "layer_without_parameters: y in eval", "batch_normalises_in_eval"),
    (
        "BatchNorm",
        "affine=False, gradient",
        "layer_without_parameters: gradient of x, of spread 1",
        "variance_detached",
    ),
    ("BatchNorm", "track_running_stats=False", "layer_without_memory: buffers, affine", "tracking_ignored"),
    ("BatchNorm", "eval without buffers", "layer_without_memory", "no_eval_without_buffers"),
    (
        "BatchNorm",
        "gradient without buffers",
        "layer_without_memory: gradient of x in eval, affine, of spread 1",
        [(_CENTRED, "centred = shifted - (offset if self.training else offset.detach())")],
    ),
    # --- devices
    ("BatchNorm", "follows .to()", "layer_moved_to_meta: left behind by .to", "plain_attributes"),
    (
        "BatchNorm",
        "no tensor made on the CPU",
        "layer_moved_to_meta: training, forward and backward",
        "made_on_the_cpu",
    ),
    ("BatchNorm", "nor in eval", "layer_moved_to_meta: eval, forward and backward", "made_on_the_cpu"),
    *(
        ("BatchNorm", f"no tensor on the CPU: {words}", f"other_layers_moved_to_meta: {where}", [(_RESULT, made)])
        for words, where, made in (
            (
                "tables, momentum=None",
                "momentum=None, tables: training, forward and backward",
                "return (y * (torch.ones(x.shape) if self.momentum is None else 1)).to(x.dtype)",
            ),
            (
                "sequences, affine=False",
                "affine=False, sequences: eval, forward and backward",
                "return (y * (torch.ones(x.shape) if self.weight is None else 1)).to(x.dtype)",
            ),
            (
                "volumes, track_running_stats=False",
                "track_running_stats=False, volumes: training, forward and backward",
                "return (y * (torch.ones(x.shape) if self.running_mean is None else 1)).to(x.dtype)",
            ),
            (
                "kept after use",
                "track_running_stats=False, volumes: left behind after use",
                "self.seen = torch.ones(x.shape)\n        return y.to(x.dtype)",
            ),
        )
    ),
    ("BatchNorm", "no detour", "layer_moved_to_meta: training, forward and backward", "through_numpy"),
    ("BatchNorm", "device=", "layer_made_on_meta", "device_ignored"),
    (
        "BatchNorm",
        "there and back",
        "layer_there_and_back: left behind on the way back",
        [
            ("self.eps = eps", "self.eps = torch.full((num_features, 1), eps, device='meta')"),
            ("(var + self.eps)", "(var + 1e-5)"),
        ],
    ),
    (
        "BatchNorm",
        "right after it",
        "layer_there_and_back: y, brought to spread 1",
        [("self.eps = eps", "self.scale = self.num_features = 0\n        self.eps = eps"), (_ROOT, _ROOT + " ** 2")],
    ),
    ("BatchNorm", "the same on a GPU", "layer_on_a_gpu", "gamma_and_beta"),
    # --- dtypes and layout
    ("BatchNorm", "half in, half out", "half_input_of_a_single_layer: y of float16", "wide_output"),
    ("BatchNorm", "bfloat16 too", "half_input_of_a_single_layer: y of bfloat16", "wide_output"),
    ("BatchNorm", "float32 statistics", "half_input_of_a_single_layer: running_mean after bfloat16", "half_statistics"),
    (
        "BatchNorm",
        "and float32 they stay",
        "half_input_of_a_single_layer: running statistics after float16",
        [(_RESULT, "self.running_var.data = self.running_var.data.to(x.dtype)\n        " + _RESULT)],
    ),
    *(
        ("BatchNorm", f"{words} of half input", f"values_of_half_input: bfloat16: {what}", [(old, new)])
        for words, what, old, new in (
            ("y", "y, brought to spread 1", _ROOT, _CLIPPED.format("x.dtype == torch.bfloat16")),
            ("scale and shift", "mean of y", _SHIFTED, "if x.dtype != torch.bfloat16:"),
            ("y in eval", "y in eval", _SCALED, "if x.dtype != torch.bfloat16:"),
            (
                "gradient of x",
                "gradient of x, of spread 1",
                _BATCH_VAR,
                f"{_BATCH_VAR}\n            var = var.detach() if x.dtype == torch.bfloat16 else var",
            ),
            (
                "running_var",
                "running_var",
                _LAYER_VAR_IN,
                f"{_LAYER_VAR_IN[:-1]} * (x.dtype != torch.bfloat16))",
            ),
        )
    ),
    (
        "BatchNorm",
        "float32 variance of half input",
        "half_input_of_a_single_layer: what came into running_var after bfloat16, as shares of its sum",
        [(_LAYER_VAR_IN, _LAYER_VAR_IN.replace("* unbiased", "* unbiased.to(x.dtype)"))],
    ),
    *(
        ("BatchNorm", f"{words}, {half}", f"half_input_of_other_layers: {what} {half}", [(old, new)])
        for half in ("float16", "bfloat16")
        for words, what, old, new in (
            ("half out, maps", "maps: y of", _RESULT, "return y.to(x.dtype if x.dim() == 2 else wide.dtype)"),
            (
                "half out, affine=False",
                "affine=False: y of",
                _RESULT,
                "return y if self.weight is None else y.to(x.dtype)",
            ),
            (
                "half out, track_running_stats=False",
                "track_running_stats=False: y of",
                _RESULT,
                "return y if self.running_mean is None else y.to(x.dtype)",
            ),
            (
                "float32 mean, maps",
                "maps: running_mean after",
                _MEAN_IN,
                _MEAN_IN.replace("* mean", "* (mean if x.dim() == 2 else mean.to(x.dtype))"),
            ),
            (
                "float32 mean, affine=False",
                "affine=False: running_mean after",
                _MEAN_IN,
                _MEAN_IN.replace("* mean", "* (mean if self.affine else mean.to(x.dtype))"),
            ),
        )
    ),
    (
        "BatchNorm",
        "half out of an empty batch",
        "half_input_of_other_layers: y of an empty batch of float16",
        [
            (
                "        n = x[:, :1].numel()\n",
                "        n = x[:, :1].numel()\n        if n == 0:\n            return x.float()\n",
            )
        ],
    ),
    ("BatchNorm", "large values of half input", "large_values_of_half_input", "half_statistics"),
    (
        "BatchNorm",
        "a layer in half precision",
        "half_input_of_a_half_layer: y, weight and running_mean of a float16 layer",
        "wide_output",
    ),
    ("BatchNorm", "dtype=", "layer_of_a_given_dtype: made with dtype=bfloat16", "dtype_ignored"),
    (
        "BatchNorm",
        "the counter stays int64",
        "layer_of_a_given_dtype: made with dtype=float64",
        [("device=device, dtype=torch.int64", "device=device, dtype=dtype or torch.int64")],
    ),
    ("BatchNorm", "follows .to(dtype)", "layer_to_double_and_back", [("return y.to(x.dtype)", "return y.float()")]),
    (
        "BatchNorm",
        "and keeps its values",
        "layer_to_double_and_back: weight after .to() and back",
        [(_DEF_EXTRA, _RESET_BY_TO + _DEF_EXTRA)],
    ),
    ("BatchNorm", "channels_last kept in training", "layer_on_channels_last: layout in training", "contiguous_output"),
    ("BatchNorm", "channels_last kept in eval", "layer_on_channels_last: layout in eval", "contiguous_output"),
    *(
        ("BatchNorm", f"channels_last, {words}", f"layer_on_channels_last: {what}", [(_RESULT, made)])
        for words, what, made in (
            ("the right values", "y, brought to spread 1", "return y.transpose(-1, -2).reshape(x.shape).to(x.dtype)"),
            ("shifted", "mean of y", "return (y - (x.stride(1) == 1)).to(x.dtype)"),
            ("in eval", "y in eval", "return (y - (x.stride(1) == 1)).to(x.dtype)"),
        )
    ),
    *(
        (
            "BatchNorm",
            f"channels_last kept in {mode}, {words}",
            f"other_layers_on_channels_last: layout in {mode}, {words}",
            [(_RESULT, made)],
        )
        for mode, words, made in (
            ("training", "bfloat16", "return (y if x.dtype == torch.float32 else y.contiguous()).to(x.dtype)"),
            ("eval", "affine=False", "return (y if self.affine else y.contiguous()).to(x.dtype)"),
            ("eval", "bfloat16", "return (y if x.dtype == torch.float32 else y.contiguous()).to(x.dtype)"),
            ("training", "affine=False", "return (y if self.affine else y.contiguous()).to(x.dtype)"),
            (
                "training",
                "track_running_stats=False",
                "return (y if self.track_running_stats else y.contiguous()).to(x.dtype)",
            ),
        )
    ),
    # --- state dict
    ("BatchNorm", "PyTorch's keys", "state_of_a_new_layer: keys", "not_saved"),
    (
        "BatchNorm",
        "PyTorch's keys with affine=False",
        "keys_of_other_layers: keys with affine=False",
        [("torch.zeros_like(ones) if track_running_stats else None)", "torch.zeros_like(ones), persistent=affine)")],
    ),
    (
        "BatchNorm",
        "PyTorch's keys with track_running_stats=False",
        "keys_of_other_layers: keys with track_running_stats=False",
        [("nn.Parameter(ones.clone()) if affine", "nn.Parameter(ones.clone()) if affine and track_running_stats")],
    ),
    *(
        (
            "BatchNorm",
            f"the counter stays at a dict of {told}",
            f"state_from_before_the_counter: counter after a dict of {told} without it",
            [("known = not", "self.num_batches_tracked.fill_(1)\n            known = not")],
        )
        for told in ("version 1", "no version")
    ),
    ("BatchNorm", "int64, 0-d counter", "state_of_a_new_layer: num_batches_tracked", "counter_as_float"),
    ("BatchNorm", "first values", "state_of_a_new_layer: first running_var", "variance_starts_at_zero"),
    ("BatchNorm", "buffers are no parameters", "state_of_a_new_layer: parameters", "buffers_as_parameters"),
    ("BatchNorm", "loads PyTorch's", "state_from_torch", "counter_with_an_axis"),
    ("BatchNorm", "PyTorch loads ours", "state_to_torch", "not_saved"),
    ("BatchNorm", "dicts without a version", "state_from_before_the_counter", "old_dicts_refused"),
    ("BatchNorm", "dicts of version 1", "state_from_before_the_counter", "version_one_refused"),
    (
        "BatchNorm",
        "the values of old dicts",
        "state_from_before_the_counter: running_var",
        [
            (
                "        super()._load_from_state_dict(",
                "        if version == 2:\n            super()._load_from_state_dict(",
            )
        ],
    ),
    (
        "BatchNorm",
        "the counter of a dict of no version",
        "state_from_before_the_counter: counter from a dict of no version",
        [("is not None and key not in state_dict:", "is not None:")],
    ),
    (
        "BatchNorm",
        "dicts without a counter where none is kept",
        "state_from_before_the_counter: loading weight and bias alone without running statistics",
        [
            ("and self.num_batches_tracked is not None and key", "and key"),
            ("known = not", "known = self.num_batches_tracked is not None and not"),
        ],
    ),
    # --- edges
    ("BatchNorm", "one value per channel in training", "layer_on_one_value", "one_value_accepted"),
    (
        "BatchNorm",
        "one value per channel without running statistics",
        "layer_on_one_value",
        [("if n == 1:", "if n == 1 and self.track_running_stats:")],
    ),
    *(
        (
            "BatchNorm",
            f"one value per channel{words}",
            f"layer_on_one_value: error for {what}",
            [("if n == 1:", f"if n == 1 and {but}:")],
        )
        for words, what, but in (
            (": a voxel", "an input of shape (1, 4, 1, 1, 1)", "x.dim() < 5"),
            (" without weight and bias", "an input of shape (1, 4) without weight and bias", "self.affine"),
            (" with momentum=None", "an input of shape (1, 4) with momentum=None", "self.momentum"),
            (" of float16", "one value per channel of float16", "x.dtype != torch.float16"),
            (" of bfloat16", "one value per channel of bfloat16", "x.dtype != torch.bfloat16"),
        )
    ),
    (
        "BatchNorm",
        "one value per channel is refused before anything moves",
        "layer_on_one_value: moved by what was refused",
        [
            (
                "            if n == 1:\n",
                "            if n == 1 and self.running_mean is not None:\n"
                "                self.running_var.fill_(torch.nan)\n            if n == 1:\n",
            )
        ],
    ),
    (
        "BatchNorm",
        "wrong channel count without weight and bias",
        "layer_on_other_channels",
        [
            ("expect_tensor(x, self.num_features)", "expect_tensor(x)"),
            ("if getattr(self, name) is not None:", "if getattr(self, name) is not None and self.affine:"),
        ],
    ),
    ("BatchNorm", "wrong channel count", "layer_on_other_channels", "channels_not_checked"),
    (
        "BatchNorm",
        "one more than there are",
        "layer_on_other_channels",
        [
            (
                "expect_tensor(x, self.num_features)",
                "x = x[:, : self.num_features]\n        expect_tensor(x, self.num_features)",
            )
        ],
    ),
    (
        "BatchNorm",
        "wrong channel count without running statistics",
        "layer_on_other_channels",
        [
            (
                "expect_tensor(x, self.num_features)",
                "expect_tensor(x, None if self.running_mean is None else self.num_features)",
            ),
            (
                "if getattr(self, name) is not None:",
                "if getattr(self, name) is not None and self.running_mean is not None:",
            ),
        ],
    ),
    ("BatchNorm", "an empty batch gives an empty output", "layer_on_empty_batch", "nothing_refused"),
    ("BatchNorm", "and changes nothing", "layer_on_empty_batch: changed by it", "nan_from_nothing"),
    *(
        (
            "BatchNorm",
            f"an empty batch, {words}",
            f"other_layers_on_empty_batch: y of an empty batch in {mode}, {words}",
            [("        n = x[:, :1].numel()\n", f"        n = x[:, :1].numel()\n        {made}\n")],
        )
        for mode, words, made in (
            ("training", "affine=False", "1 / (n + self.affine)"),
            ("eval", "affine=False", "1 / (n + self.affine + self.training)"),
            ("training", "track_running_stats=False", "1 / (n + self.track_running_stats)"),
        )
    ),
    ("BatchNorm", "accurate when the mean is large", "layer_on_a_far_table: running_var", "one_pass_variance"),
    (
        "BatchNorm",
        "accurate when |mean| is large: below zero as well",
        "layer_on_a_far_table: running_var",
        [
            (
                _LAYER_VAR_IN,
                _LAYER_VAR_IN.replace(
                    "* unbiased", "* torch.where(mean > 0, unbiased, wide.square().mean(axes) - mean**2)"
                ),
            )
        ],
    ),
    ("BatchNorm", "accurate when the mean is large, maps", "layer_on_far_maps: y", "one_pass_variance"),
    ("BatchNorm", "modes of a network", "layer_in_a_network: moved after eval() of the network", "own_eval_flag"),
    (
        "BatchNorm",
        "deep copies, where a layer is in front",
        "layer_in_a_network",
        [(_CENTRED, f"{_CENTRED}\n            self.batch_mean = offset")],
    ),
    ("BatchNorm", "deep copies", "layer_in_a_network", "keeps_its_output"),
]

LAYER = find("running_stats.BatchNorm")
on_devices = pytest.mark.parametrize("device", DEVICES)


class _WithHabits(RIGHT["running_stats.BatchNorm"]["NaiveOperations"]):
    """Right, with habits that are legal on a GPU: numbers read out, constants moved, the last batch kept for a look."""

    def forward(self, x):
        self.last_mean = x.detach().float().mean((0, *range(2, x.dim())))
        if self.last_mean.numel() and float(self.last_mean.sum()) > 1e30:
            raise OverflowError
        one = torch.ones(x.shape[1]).to(x.device).reshape(1, -1, *(1,) * (x.dim() - 2))
        return super().forward(x) * one.to(x.dtype) * torch.tensor(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_habits_that_a_gpu_allows_cost_nothing(seed):
    verdict = judge(LAYER, observe(LAYER, _WithHabits, seed), seed)
    assert verdict.passed, str(verdict)


def test_what_happened_on_the_other_device_is_told_in_a_note():
    class BatchNorm(RIGHT["running_stats.BatchNorm"]["NaiveOperations"]):
        def forward(self, x):
            return super().forward(x) * torch.ones(x.shape[-1])

    verdict = judge(LAYER, observe(LAYER, BatchNorm, 0), 0)
    assert any("on meta: mixes tensors on cpu and meta in mul" in note for note in verdict.notes)


def test_a_layer_of_another_kind_is_told_what_it_lacks():
    verdict = judge(LAYER, observe(LAYER, lambda channels, *_, **__: torch.nn.ReLU(), 0), 0)
    assert verdict.points == 0
    assert any("expected the layer to have weight" in message for message in verdict.messages)


@pytest.mark.parametrize("left", ["forward", "_load_from_state_dict"])
def test_a_half_finished_layer_has_points_for_what_is_there(left):
    def stub(self, *args):
        raise NotImplementedError

    layer = type("BatchNorm", (RIGHT["running_stats.BatchNorm"]["NaiveOperations"],), {left: stub})
    verdict = judge(LAYER, observe(LAYER, layer, 0), 0)
    assert 0 < verdict.points < verdict.max_points


@pytest.fixture
def gpu(device, monkeypatch):
    """One of the devices, as the GPU that answers are compared on."""
    monkeypatch.setattr("course_lib.checks.running_stats_tensors.gpus", lambda: [device])


@on_devices
@pytest.mark.parametrize("layer", [*RIGHT["running_stats.BatchNorm"].values(), _WithHabits], ids=lambda c: c.__name__)
def test_right_answers_are_right_on_a_gpu(layer, gpu):
    verdict = judge(LAYER, observe(LAYER, layer, 0), 0)
    assert verdict.passed, str(verdict)


@on_devices
def test_an_answer_that_is_another_one_elsewhere_is_told(gpu):
    class BatchNorm(RIGHT["running_stats.BatchNorm"]["NaiveOperations"]):
        def __deepcopy__(self, memo):
            other = type(self)(self.num_features)
            other.load_state_dict(self.state_dict())
            other.eps = self.eps + len(memo) + torch.rand(()).item()
            return other

    verdict = judge(LAYER, observe(LAYER, BatchNorm, 0), 0)
    assert any(message.startswith("the same on a GPU") for message in verdict.messages)
