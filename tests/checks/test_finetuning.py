"""Problem set 4: what every topic is tested for, and the pair that is checked together."""

import pytest

from course_lib.checks import check
from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find, pieces
from course_lib.misconceptions import TOGETHER
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.finetuning import RIGHT

TOPIC = "finetuning"
CLAUSES = [
    ("freeze_batchnorm", "frozen from then on", "frozen_at_once", "gradients_only"),
    ("freeze_batchnorm", "survive train(): the buffers", "frozen_while_training", "gradients_only"),
    ("freeze_batchnorm", "survive train(): the mode", "frozen_while_training: output in training", "momentum_zero"),
    ("freeze_batchnorm", "survive train(), frozen while evaluating", "frozen_from_eval", "eval_once"),
    ("freeze_batchnorm", "every BN kind", "frozen_kinds: layers in eval mode after train()", "one_two_three"),
    ("freeze_batchnorm", "every BN kind, the course's", "frozen_kinds: course.running_mean", "torch_only"),
    ("freeze_batchnorm", "every BN kind's γ and β", "frozen_parameters_of_kinds: trained parameters", "torch_only"),
    ("freeze_batchnorm", "no other kind", "frozen_kinds: instance.running_mean", "by_buffers"),
    ("freeze_batchnorm", "nothing else", "frozen_nothing_else: layers in eval mode after train()", "whole_model"),
    (
        "freeze_batchnorm",
        "no other parameter",
        "frozen_nothing_else: trained parameters of other layers",
        "all_parameters",
    ),
    ("freeze_batchnorm", "affine=True stops γ and β", "frozen_affine: trained parameters", "affine_forgotten"),
    ("freeze_batchnorm", "β as well", "frozen_affine: trained parameters", "gamma_only"),
    ("freeze_batchnorm", "affine=False lets them", "frozen_without_affine: trained parameters", "affine_ignored"),
    ("freeze_batchnorm", "affine=False changes nothing", "frozen_without_affine", "affine_as_value"),
    ("freeze_batchnorm", "in place", "frozen_in_place: output after freezing twice", "a_copy"),
    ("freeze_batchnorm", "returns the model", "frozen_in_place: returns the model it was given", "nothing_returned"),
    ("freeze_batchnorm", "state_dict keys unchanged", "frozen_in_place: state-dict keys", "marked_by_a_buffer"),
    (
        "freeze_batchnorm",
        "twice = once",
        "frozen_in_place: output after freezing twice",
        [('if not hasattr(layer, "frozen_from"):', 'assert not hasattr(layer, "frozen_from")\n        if True:')],
    ),
    ("freeze_batchnorm", "a frozen model deep-copies", "frozen_copy", "scale_kept"),
    ("unfreeze_batchnorm", "each layer's earlier mode", "unfrozen_modes: layers in eval mode", "always_train"),
    ("unfreeze_batchnorm", "each layer's, whatever the model's", "unfrozen_after_eval", "mode_of_the_model"),
    ("unfreeze_batchnorm", "every BN kind", "unfrozen_after_eval", "one_two_three"),
    ("unfreeze_batchnorm", "follows train() again", "unfrozen_follows_train", "still_frozen"),
    ("unfreeze_batchnorm", "earlier requires_grad", "unfrozen_gradients: trained parameters", "never_trainable"),
    ("unfreeze_batchnorm", "each parameter's own", "unfrozen_gradients: trained parameters", "all_trainable"),
    ("unfreeze_batchnorm", "after affine=False", "unfrozen_without_affine: trained parameters", "all_trainable"),
    ("unfreeze_batchnorm", "unfreezing twice = once", "unfrozen_twice", "only_once"),
    ("unfreeze_batchnorm", "unfreezing twice = once", "unfrozen_twice: layers in eval mode", "saved_state_kept"),
    ("unfreeze_batchnorm", "in place", "unfrozen_twice: returns the model it was given", "a_copy"),
    ("unfreeze_batchnorm", "freezing twice = once", "unfrozen_after_freezing_twice", "second_freeze_remembered"),
    ("unfreeze_batchnorm", "a copy can be undone", "unfrozen_copy: of the copy", "remembered_elsewhere"),
    (
        "unfreeze_batchnorm",
        "a copy is one of its own",
        "unfrozen_copy: of the original, unfrozen after a copy was made",
        "bound_to_the_original",
    ),
    (
        "unfreeze_batchnorm",
        "state_dict keys unchanged",
        "unfrozen_keys: state-dict keys",
        [("layer.train(training)", "layer.train(training)\n            layer.register_buffer('was', torch.ones(1))")],
    ),
    ("recalibrate", "exact: every value counts once", "recalibrated_table", "batches_averaged"),
    ("recalibrate", "exact: what is between the batches", "recalibrated_maps: bn.running_var", "within_only"),
    ("recalibrate", "population statistics: unbiased", "recalibrated_whole: bn.running_var", "biased_variance"),
    ("recalibrate", "of its input", "recalibrated_whole", "of_the_output"),
    ("recalibrate", "earlier BNs use their new buffers", "recalibrated_net: bn.running_var", "one_pass"),
    ("recalibrate", "does not depend on the split", "recalibrated_net_again", "training_mode"),
    ("recalibrate", "each BN, in eval mode too", "recalibrated_net_again", "eval_layers_left_out"),
    ("recalibrate", "call order", "recalibrated_in_call_order", "definition_order"),
    ("recalibrate", "each BN, of every kind", "recalibrated_kinds", "one_two_three"),
    ("recalibrate", "everything in eval while running", "recalibrated_without_dropout", "dropout_active"),
    ("recalibrate", "in place", "recalibrated_rest", "a_copy"),
    ("recalibrate", "returns the model", "recalibrated_rest: returns the model it was given", "a_copy"),
    ("recalibrate", "weights as before", "recalibrated_rest: weights", "affine_reset"),
    ("recalibrate", "modes as before", "recalibrated_rest: layers in eval mode", "left_in_train"),
    ("recalibrate", "momentum as before", "recalibrated_rest: momentum", "momentum_changed"),
    ("recalibrate", "counters as before", "recalibrated_rest: batches counted", "counter_reset"),
    (
        "recalibrate",
        "requires_grad as before",
        "recalibrated_rest: trained parameters",
        [("    return model", "    return model.requires_grad_(True)")],
    ),
    ("recalibrate", "no history in the buffers", "recalibrated_rest", "with_history"),
    (
        "recalibrate",
        "nothing is left behind",
        "recalibrated_rest: next output",
        [("handle.remove()", "handle.id"), ("if called.count(layer) > 1:", "if False:")],
    ),
    ("recalibrate", "exact when the mean is large", "recalibrated_far_from_zero", "one_pass_variance"),
    ("recalibrate", "whatever is re-iterable", "recalibrated_from_loader", "lists_only"),
    ("recalibrate", "a generator", "recalibrated_refusals: error for a generator", "generator_listed"),
    (
        "recalibrate",
        "a BN called twice in one pass",
        "recalibrated_refusals: error for a layer called twice",
        "two_places_only",
    ),
    (
        "recalibrate",
        "a BN called twice in one pass, from two places",
        "recalibrated_refusals: error for a layer in two places",
        "called_twice_accepted",
    ),
    ("GhostBatchNorm", "statistics per virtual batch", "ghost_of_table: y", "whole_batch"),
    ("GhostBatchNorm", "split on dim 0, the last smaller", "ghost_of_table", "equal_parts"),
    ("GhostBatchNorm", "any rank; eps", "ghost_of_maps: y", "eps_ignored"),
    ("GhostBatchNorm", "the last is smaller", "ghost_of_maps: y", "rest_joined"),
    ("GhostBatchNorm", "a batch smaller than a virtual one", "ghost_of_small_batch", "number_of_parts"),
    ("GhostBatchNorm", "one EMA update per virtual batch", "ghost_updates: running_mean", "one_update"),
    ("GhostBatchNorm", "in order", "ghost_updates", "reversed_updates"),
    ("GhostBatchNorm", "unbiased running_var", "ghost_updates: running_var", "biased_running_var"),
    ("GhostBatchNorm", "momentum is 0.1 by default", "ghost_updates_by_default", [("= 0.1,", "= 0.2,")]),
    ("GhostBatchNorm", "eval as BatchNorm", "ghost_in_eval: y", "ghosts_in_eval"),
    ("GhostBatchNorm", "eval without statistics", "ghost_in_eval_without_statistics", "ghosts_in_eval"),
    ("GhostBatchNorm", "gradients through the statistics", "ghost_gradients: dx", "constant_statistics"),
    ("GhostBatchNorm", "momentum, by its place", "ghost_arguments: running_var", "momentum_of_the_old"),
    ("GhostBatchNorm", "affine", "ghost_arguments: parameters of affine=False", "affine_ignored"),
    (
        "GhostBatchNorm",
        "track_running_stats",
        "ghost_arguments: statistics of track_running_stats=False",
        "tracking_ignored",
    ),
    ("GhostBatchNorm", "device", "ghost_arguments: devices of device='meta'", "device_and_dtype_ignored"),
    ("GhostBatchNorm", "dtype", "ghost_arguments: dtypes of dtype=torch.float64", "device_and_dtype_ignored"),
    ("momentum_for_accumulation", "k updates forget as much as one", "accumulated", "divided"),
    ("momentum_for_accumulation", "one update is one", "accumulated_once", "one_less"),
    ("momentum_for_accumulation", "large momentum, many updates", "accumulated_often", "divided"),
    ("replace_batchnorm", "every BN replaced", "replaced_net: y", "on_top"),
    ("replace_batchnorm", "nested right", "replaced_net: layers", "dotted_names"),
    ("replace_batchnorm", "every BN kind", "replaced_kinds: layers", "one_two_three"),
    ("replace_batchnorm", "by make(bn)", "replaced_by_something_around", "the_new_replaced_too"),
    ("replace_batchnorm", "a BN itself", "replaced_root: kind", "root_left"),
    (
        "replace_batchnorm",
        "a shared module is shared in the output",
        "replaced_shared: one layer for a BatchNorm used in two blocks",
        "made_anew",
    ),
    ("replace_batchnorm", "shared in the output", "replaced_shared: kinds", "second_name_left"),
    ("replace_batchnorm", "a new model", "replaced_input: result is the input", "in_place"),
    ("replace_batchnorm", "input not changed", "replaced_input: layers of the input", "shallow_copy"),
    (
        "replace_batchnorm",
        "input not changed by what is kept of it",
        "replaced_input_kept_inside: output of the input afterwards",
        "make_of_the_original",
    ),
    ("weight_decay_groups", "norms get 0, all of torch's", "decay_of_norms: without", "instance_norm_decays"),
    ("weight_decay_groups", "norms, not what has one axis", "decay_of_others: with decay", "by_axes"),
    ("weight_decay_groups", "biases get 0", "decay_of_others: without", "bias_by_ending"),
    ("weight_decay_groups", "the others decay", "decay_of_others: with decay", "known_layers_only"),
    ("weight_decay_groups", "trainable parameters only", "decay_of_trainable: listed", "frozen_included"),
    ("weight_decay_groups", "exactly once", "decay_of_shared: listed", "listed_twice"),
    ("weight_decay_groups", "first decay, then none", "decay_form", "order_swapped"),
    ("weight_decay_groups", "none is 0", "decay_form: decay of the second group", "both_decay"),
]


def test_the_points_of_the_set():
    assert sum(piece.max_points for piece in pieces(TOPIC)) == 14


def test_checks_and_misconceptions_agree_on_what_is_checked_together():
    assert {piece.name: piece.takes for piece in pieces(TOPIC) if piece.takes} == TOGETHER


def test_the_function_alone_in_place_of_the_pair_is_told_so():
    from course_lib.finetuning import unfreeze_batchnorm

    verdict = check("finetuning.unfreeze_batchnorm", unfreeze_batchnorm)
    assert verdict.points == 0
    assert all("both of your functions" in message for message in verdict.messages)


@pytest.mark.parametrize("seed", SEEDS)  # noqa: F405
def test_a_pair_of_two_students_does_not_fit_and_is_no_error(seed):
    # One saves its own way, the other looks for something else: nothing comes back, and the rest is still judged.
    piece = find("finetuning.unfreeze_batchnorm")
    freeze, _ = RIGHT[piece.name]["bound_method"]
    _, unfreeze = RIGHT[piece.name]["with_always"]
    assert judge(piece, observe(piece, (freeze, unfreeze), seed), seed).points == 0
