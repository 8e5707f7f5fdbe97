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
CLAUSES = [
    ("batch_norm_eval_backward", "the statistics are constants", "eval_gradient_of_table: dx", "batch_coupled"),
    ("batch_norm_eval_backward", "eps inside the root", "eval_gradient_of_table: dx", "eps_outside_root"),
    (
        "batch_norm_eval_backward",
        "eps is 1e-5 by default",
        "eval_gradient_with_default_eps",
        [("eps: float = 1e-5", "eps: float = 1e-3")],
    ),
    ("batch_norm_eval_backward", "any rank", "eval_gradient_of_other_ranks", "no_broadcast"),
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
        "inputs stay",
        "eval_backward_leaves_inputs_alone: inputs changed",
        "gradient_overwritten",
    ),
    ("BatchNormFunction", "forward in training", "function_of_table: y", "unbiased_normalises"),
    ("BatchNormFunction", "eps inside the root", "function_of_maps: y", "eps_outside_root"),
    ("BatchNormFunction", "the input stays", "function_of_maps: inputs changed", "input_overwritten"),
    ("BatchNormFunction", "any rank", "function_of_other_ranks", "no_root"),
    ("BatchNormFunction", "gradcheck in training: dx", f"{_EACH}: dx", "no_variance_term"),
    ("BatchNormFunction", "gradcheck in training: dweight", f"{_EACH}: dweight", "parameter_gradients_swapped"),
    ("BatchNormFunction", "gradcheck in training: dbias", f"{_EACH}: dbias", "parameter_gradients_averaged"),
    ("BatchNormFunction", "gradcheck in training, maps", "function_gradients_of_maps: dx", "n_is_batch_size"),
    ("BatchNormFunction", "the input stays", "function_gradients_of_maps: inputs changed", "input_overwritten"),
    ("BatchNormFunction", "forward in eval", "function_in_eval_of_table: y", "batch_in_eval"),
    ("BatchNormFunction", "gradcheck in eval", "function_in_eval_of_table: dx", "coupled_in_eval"),
    ("BatchNormFunction", "gradcheck in eval, maps", "function_in_eval_of_maps: dx", "coupled_in_eval"),
    (
        "BatchNormFunction",
        "eval: constants of the forward pass",
        "function_in_eval_then_training: dx",
        "buffer_kept_in_ctx",
    ),
    ("BatchNormFunction", "updates in place", "function_moves_statistics: running_mean after a step", "not_in_place"),
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
    ("BatchNormFunction", "weight None", "function_without_weight", "weight_required"),
    ("BatchNormFunction", "bias None", "function_without_bias", "bias_required"),
    ("BatchNormFunction", "all None", "function_without_anything", "weight_required"),
    ("BatchNormFunction", "buffers None", "function_without_statistics_in_eval", "statistics_required"),
    ("bn_modes", "each layer's own flag", "modes_of_nested_layers", "flag_of_the_model"),
    ("bn_modes", "names as in named_modules()", "modes_of_nested_layers", "last_part_of_the_name"),
    ("bn_modes", "each layer's own flag, many", "modes_of_many_layers", "words_swapped"),
    ("bn_modes", "each kind, no other, many", "modes_among_other_layers", "images_only"),
    ("bn_modes", "a shared layer once", "modes_of_shared_layers", "shared_twice"),
    ("bn_modes", "every kind, Sync", "modes_of_every_kind: SyncBatchNorm", "three_kinds"),
    ("bn_modes", "every kind, Lazy", "modes_of_every_kind: LazyBatchNorm2d", "three_kinds"),
    ("bn_modes", "every kind, course_lib's", "modes_of_every_kind: the course's BatchNorm", "torchs_only"),
    ("bn_modes", "no other layer", "modes_of_every_kind: InstanceNorm2d", "every_norm"),
    ("bn_modes", "a model without → {}", "modes_of_special_models: of a model without such layers", "all_modules"),
    ("bn_modes", "the model itself", "modes_of_special_models: of a layer alone", "without_the_model"),
    ("evaluating", "eval inside", "modes_inside: in training", "no_grad_for_eval"),
    ("evaluating", "each module's own mode back", "modes_afterwards: in training afterwards", "train_afterwards"),
    ("evaluating", "whatever happened inside", "modes_after_being_switched_inside", "flag_of_the_model"),
    (
        "evaluating",
        "also after an exception",
        "modes_after_an_exception: in training afterwards",
        "not_after_exceptions",
    ),
    (
        "evaluating",
        "the exception comes through",
        "modes_after_an_exception: error that comes through",
        "exception_swallowed",
    ),
    ("predict", "eval", "predictions", "batch_decides"),
    ("predict", "all batches", "predictions: y", "last_batch_only"),
    ("predict", "any iterable", "predictions_from_a_generator", "lists_only"),
    ("predict", "no grad", "predictions_without_graph: y needs gradients", "graph_recorded"),
    ("predict", "modes restored", "predictions_leave_no_trace: in training afterwards", "stays_in_eval"),
    ("predict", "statistics stay", "predictions_leave_no_trace: running_mean afterwards", "batch_decides"),
    ("predict", "modes restored after an error", "predictions_of_failing_data", "not_after_exceptions"),
    ("clinic_no_eval", "no eval", "accuracy_of_a_training_model", "batch_decides"),
    ("clinic_no_eval", "the model leaves as it came", "accuracy_of_a_model_in_eval", "train_afterwards"),
    ("clinic_plain_buffers", "in the state dict", "centring_layer: running_mean in the state dict", "not_saved"),
    ("clinic_plain_buffers", "no optimiser sees it", "centring_layer: parameters an optimiser sees", "parameter"),
    ("clinic_plain_buffers", "in place", "centring_layer: running_mean, held since before", "replaced"),
    ("clinic_plain_buffers", ".to() moves and casts", "centring_layer_elsewhere: device after .to", "plain_attribute"),
    (
        "clinic_plain_buffers",
        "momentum is 0.1 by default",
        "centring_layer_by_default",
        [("momentum: float = 0.1", "momentum: float = 0.2")],
    ),
    ("clinic_graph_in_buffers", "no graph", "running_mean_of_tables: it needs gradients", "graph_recorded"),
    ("clinic_graph_in_buffers", "every position counts", "running_mean_of_maps", "batch_axis_only"),
    ("clinic_grad_mode", "as it predicts", "gradient_of_the_input: result", "training_for_gradients"),
    ("clinic_grad_mode", "whatever the caller has switched", "gradient_of_the_input", "callers_switch"),
    ("clinic_grad_mode", "nothing else happens", "gradient_of_the_input: gradient of weight afterwards", "accumulated"),
    ("clinic_momentum", "weight of the new value", "weighted_statistic: with momentum 0", "weighs_the_old"),
    ("clinic_momentum", "a new tensor", "weighted_statistic: inputs changed", "in_place"),
    ("clinic_biased_var", "unbiased", "running_var_of_table: running_var", "divided_by_n"),
    ("clinic_biased_var", "n counts positions", "running_var_of_maps: running_var", "bessel_by_batch_size"),
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
