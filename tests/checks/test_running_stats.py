"""Problem set 2: what every topic is tested for, and that the checks are blind to what a GPU would not mind."""

import pytest
import torch

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.running_stats import RIGHT

TOPIC = "running_stats"
_VAR_IN = "running_var.mul_(1 - momentum).add_(momentum * var)"
CLAUSES = [
    ("update_running_stats", "momentum weighs the new value", "update_by_table: running_mean", "momentum_on_the_old"),
    ("update_running_stats", "the unbiased variance", "update_by_table: running_var", "biased_variance"),
    ("update_running_stats", "over positions too", "update_by_maps: running_mean", "batch_axis_only"),
    ("update_running_stats", "n counts values", "update_by_maps: running_var", "bessel_by_batch_size"),
    ("update_running_stats", "in place", "update_by_maps: running_var", "variance_in_a_new_tensor"),
    ("update_running_stats", "one sample of many values", "update_by_one_image", [("if n == 1", "if len(x) == 1")]),
    ("update_running_stats", "two values per channel are enough", "update_by_two_values", [("n == 1", "n <= 2")]),
    ("update_running_stats", "any rank: sequences", "update_by_sequences", "tables_and_images_only"),
    ("update_running_stats", "any rank: volumes", "update_by_volumes", "tables_and_images_only"),
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
    ("update_running_stats", "float32 statistics of half input", "update_by_half_input", "half_statistics"),
    ("update_running_stats", "accurate when the mean is large", "update_far_from_zero", "one_pass_variance"),
    ("ema_after", "where the average stands", "average_after_steps", "linear"),
    ("ema_after", "from any start", "average_after_steps", "start_forgotten"),
    ("ema_after", "after no step", "average_at_extremes: after 0 steps", "one_step_too_many"),
    ("ema_after", "with momentum 1", "average_at_extremes: after 2 steps with momentum 1", "momentum_on_the_old"),
    ("ema_after", "a float", "average_at_extremes: a Python float", "tensor_returned"),
    ("steps_to_forget", "no more than the fraction is left", "steps_rounded_up", "rounded_down"),
    ("steps_to_forget", "the smallest number of steps", "steps_rounded_up", "one_step_more"),
    ("steps_to_forget", "with momentum 1", "steps_at_the_edge", "no_special_case"),
    ("steps_to_forget", "an int", "steps_at_the_edge: an int", "float_returned"),
    ("torch_momentum", "Keras", "momentum_of_other_libraries: keras", "not_translated"),
    ("torch_momentum", "flax", "momentum_of_other_libraries: flax", "flax_like_torch"),
    ("torch_momentum", "ONNX", "momentum_of_other_libraries: onnx", "onnx_like_torch"),
    ("torch_momentum", "PyTorch", "momentum_of_torch: torch", "always_translated"),
    ("torch_momentum", "other conventions are refused", "momentum_of_torch", "unknown_accepted"),
    ("torch_momentum", "with a ValueError", "momentum_of_torch", "key_error"),
    ("population_stats", "the unbiased variance", "population_of_a_table: var", "biased_variance"),
    ("population_stats", "n counts values per channel", "population_of_maps: n", "samples_counted"),
    ("population_stats", "exact for every split", "population_of_uneven_batches: var", "average_of_variances"),
    ("population_stats", "counts what is between batches", "population_of_uneven_maps: var", "weighted_variances"),
    ("population_stats", "weighted by count", "population_of_uneven_batches: mean", "mean_of_means"),
    ("population_stats", "an empty batch", "population_of_odd_batches: mean", "empty_batch_counted"),
    ("population_stats", "a batch of one value", "population_of_odd_batches: var", "variance_of_one_value"),
    ("population_stats", "batches from a generator", "population_of_odd_batches", "length_asked"),
    ("population_stats", "float64 tensors", "population_of_other_ranks: dtypes", "float32_returned"),
    ("population_stats", "n is an int", "population_of_other_ranks: n is an int", "tensor_count"),
    ("population_stats", "any rank", "population_of_other_ranks", [(".flatten(1)", "[..., 0].reshape(channels, -1)")]),
    (
        "population_stats",
        "the data stay",
        "population_of_other_ranks: inputs changed",
        [("if size == 0:", "batch.zero_()\n            if size == 0:")],
    ),
    ("population_stats", "accurate when the mean is large", "population_far_from_zero: var", "float32_sums"),
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
    ("BatchNorm", "one sample of many values", "training_on_one_image", [("if n == 1:", "if len(x) == 1:")]),
    ("BatchNorm", "two values are enough", "training_on_two_values", [("if n == 1:", "if n <= 2:")]),
    ("BatchNorm", "rank 3", "layer_on_sequences", "tables_and_images_only"),
    ("BatchNorm", "rank 5", "layer_on_volumes", "tables_and_images_only"),
    ("BatchNorm", "ranks in eval", "layer_on_sequences", "positions_on_the_last_axes"),
    # --- what it remembers
    ("BatchNorm", "momentum weighs the new value", "statistics_after_batches: running_mean", "momentum_on_the_old"),
    ("BatchNorm", "unbiased running_var", "statistics_after_batches: running_var", "biased_variance_remembered"),
    ("BatchNorm", "in place", "statistics_after_batches: replaced by new tensors", "buffers_replaced"),
    ("BatchNorm", "no history", "statistics_after_batches: with autograd history", "with_history"),
    ("BatchNorm", "batches are counted", "statistics_after_batches: batches counted", "batches_not_counted"),
    ("BatchNorm", "momentum is 0.1 by default", "statistics_with_default_momentum", "default_momentum"),
    ("BatchNorm", "updates without gradients", "statistics_without_gradients", "no_update_without_gradients"),
    ("BatchNorm", "momentum 0 is not None", "statistics_with_momentum_zero", "zero_is_none"),
    # --- eval
    ("BatchNorm", "running statistics normalise", "eval_on_table: y", "batch_normalises_in_eval"),
    ("BatchNorm", "and stay", "eval_on_maps: changed in eval", "eval_remembers"),
    ("BatchNorm", "gradient in eval", "eval_on_maps: gradient of x", "batch_normalises_in_eval"),
    ("BatchNorm", "eps is 1e-5 by default", "eval_with_default_eps", "keras_eps"),
    ("BatchNorm", "one value in eval", "eval_of_one_value", "one_value_refused_in_eval"),
    # --- momentum=None
    ("BatchNorm", "cumulative mean", "average_of_uneven_batches", "none_is_the_default"),
    ("BatchNorm", "cumulative from the counter", "average_of_a_loaded_layer", "none_counts_in_python"),
    ("BatchNorm", "cumulative variance", "average_of_variances", "none_is_off_by_one"),
    # --- switches
    ("BatchNorm", "affine=False", "layer_without_parameters: parameters", "affine_ignored"),
    ("BatchNorm", "track_running_stats=False", "layer_without_memory: buffers", "tracking_ignored"),
    ("BatchNorm", "eval without buffers", "layer_without_memory", "no_eval_without_buffers"),
    # --- devices
    ("BatchNorm", "follows .to()", "layer_moved_to_meta: left behind by .to", "plain_attributes"),
    (
        "BatchNorm",
        "no tensor made on the CPU",
        "layer_moved_to_meta: training, forward and backward",
        "made_on_the_cpu",
    ),
    ("BatchNorm", "nor in eval", "layer_moved_to_meta: eval, forward and backward", "made_on_the_cpu"),
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
    ("BatchNorm", "the same on a GPU", "layer_on_a_gpu", "gamma_and_beta"),
    # --- dtypes and layout
    ("BatchNorm", "half in, half out", "half_input_of_a_single_layer: y", "wide_output"),
    ("BatchNorm", "and in eval", "half_input_of_a_single_layer: y in eval", "wide_output"),
    ("BatchNorm", "float32 statistics", "half_input_of_a_single_layer: running_mean", "half_statistics"),
    ("BatchNorm", "a layer in half precision", "half_input_of_a_half_layer: dtypes", "wide_output"),
    ("BatchNorm", "dtype=", "layer_of_a_given_dtype", "dtype_ignored"),
    ("BatchNorm", "follows .to(dtype)", "layer_to_double_and_back", [("return y.to(x.dtype)", "return y.float()")]),
    ("BatchNorm", "channels_last kept in training", "layer_on_channels_last: y in training", "contiguous_output"),
    ("BatchNorm", "channels_last kept in eval", "layer_on_channels_last: y in eval", "contiguous_output"),
    # --- state dict
    ("BatchNorm", "PyTorch's keys", "state_of_a_new_layer: keys", "not_saved"),
    ("BatchNorm", "int64, 0-d counter", "state_of_a_new_layer: num_batches_tracked", "counter_as_float"),
    ("BatchNorm", "first values", "state_of_a_new_layer: first running_var", "variance_starts_at_zero"),
    ("BatchNorm", "buffers are no parameters", "state_of_a_new_layer: parameters", "buffers_as_parameters"),
    ("BatchNorm", "loads PyTorch's", "state_from_torch", "counter_with_an_axis"),
    ("BatchNorm", "PyTorch loads ours", "state_to_torch", "not_saved"),
    ("BatchNorm", "dicts without a version", "state_from_before_the_counter", "old_dicts_refused"),
    ("BatchNorm", "dicts of version 1", "state_from_before_the_counter", "version_one_refused"),
    # --- edges
    ("BatchNorm", "one value per channel in training", "layer_on_one_value", "one_value_accepted"),
    ("BatchNorm", "wrong channel count", "layer_on_other_channels", "channels_not_checked"),
    ("BatchNorm", "an empty batch gives an empty output", "layer_on_empty_batch", "nothing_refused"),
    ("BatchNorm", "and changes nothing", "layer_on_empty_batch: changed by it", "nan_from_nothing"),
    ("BatchNorm", "accurate when the mean is large", "layer_on_a_far_table: running_var", "one_pass_variance"),
    ("BatchNorm", "accurate when the mean is large, maps", "layer_on_far_maps: y", "one_pass_variance"),
    ("BatchNorm", "modes of a network", "layer_in_a_network: moved after eval() of the network", "own_eval_flag"),
    ("BatchNorm", "deep copies", "layer_in_a_network", "keeps_its_output"),
]

LAYER = find("running_stats.BatchNorm")


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


def test_a_gpu_is_compared_where_there_is_one(monkeypatch):
    # The CPU stands in for it: its results are the same, a layer that is another one at every copy is not.
    monkeypatch.setattr("course_lib.checks.running_stats.gpus", lambda: ["cpu"])
    assert judge(LAYER, observe(LAYER, RIGHT["running_stats.BatchNorm"]["NaiveOperations"], 0), 0).passed

    class BatchNorm(RIGHT["running_stats.BatchNorm"]["NaiveOperations"]):
        def __deepcopy__(self, memo):
            other = type(self)(self.num_features)
            other.load_state_dict(self.state_dict())
            other.eps = self.eps + len(memo) + torch.rand(()).item()
            return other

    verdict = judge(LAYER, observe(LAYER, BatchNorm, 0), 0)
    assert any(message.startswith("the same on a GPU") for message in verdict.messages)
