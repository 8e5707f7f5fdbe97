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
# Parts of the references, which the mistakes below change.
_FIND = "batchnorm_layers(model, tracked=True)"
_LAYERS = f"{_FIND}.values()"
_RETURN = "    return model"
_STAY = "layer.train = Always(nn.Module.train, layer, False)"
_IF_NEW = 'if not hasattr(layer, "frozen_from"):'
_KEEP = ("def freeze_batchnorm", "def _keep(layer, args, y):\n    layer.last = y\n\n\ndef freeze_batchnorm")


def _without(kind):
    """The edit that finds every layer but those of one rank."""
    return [(_LAYERS, f"[m for m in model.modules() if is_batchnorm(m) and not isinstance(m, nn.BatchNorm{kind})]")]


_EACH_LAYER, _MODE_BACK = "batchnorm_layers(model).values()", "layer.train(training)"
_WANTED_BACK = "parameter.requires_grad = wanted.get(name, parameter.requires_grad)"
_REMEMBER = "layer.frozen_from = layer.training, wanted"


def _others(trained):
    """The edit that sets the `requires_grad` of every parameter of no BatchNorm layer, when undoing."""
    each = "for m in model.modules() if not is_batchnorm(m) for p in m.parameters(recurse=False)"
    return [(_MODE_BACK, f"{_MODE_BACK}\n            [p.requires_grad_({trained}) {each}]")]


_SPLIT = "x.split(self.virtual_batch_size)"


def _of_rank(axes):
    """The edit that does not split an input of so many axes."""
    return [(_SPLIT, f"x.split(len(x) if x.dim() == {axes} else self.virtual_batch_size)")]


def _in_eval(y):
    """The edit of what comes out in eval mode."""
    old = "            return super().forward(x)"
    return [(old, f"            both = self.running_mean, self.running_var\n            return {y}")]


_SET_SIZE = "self.virtual_batch_size = virtual_batch_size"
_IS_NORM = "is_batchnorm(m) or isinstance(m, norms)"
_GIVEN = "layers that make is given: channels, eps, momentum, training, trained"
_MADE = "make(copy.deepcopy(layer, memo))"
_NORMS = [f"{kind}Norm{axes}d" for kind in ("Batch", "Instance") for axes in (1, 2, 3)]
_NORMS += ["SyncBatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]


CLAUSES = [
    ("freeze_batchnorm", "frozen from then on", "frozen_at_once", "gradients_only"),
    ("freeze_batchnorm", "survive train(): the buffers", "frozen_while_training", "gradients_only"),
    ("freeze_batchnorm", "survive train(): the mode", "frozen_while_training: output in training", "momentum_zero"),
    ("freeze_batchnorm", "survive train(), frozen while evaluating", "frozen_from_eval", "eval_once"),
    ("freeze_batchnorm", "every BN kind", "frozen_kinds: layers in eval mode after train()", "one_two_three"),
    ("freeze_batchnorm", "every BN kind, the course's", "frozen_kinds: course.running_mean", "torch_only"),
    (
        "freeze_batchnorm",
        "survive train(), a lazy layer that has become another class",
        "frozen_kinds: layers in eval mode after train()",
        [
            (
                "layer.train = Always(nn.Module.train, layer, False)",
                "kind = type(layer)\n        steady = {'train': lambda self, mode=True: nn.Module.train(self, False)}\n"
                "        layer.__class__ = type(kind.__name__, (kind,), steady)",
            )
        ],
    ),
    ("freeze_batchnorm", "every BN kind, of every rank", "frozen_each_kind", "one_two_three"),
    ("freeze_batchnorm", "of every rank: 1d", "frozen_from_eval: 1d: bn.running_mean after a step", _without("1d")),
    ("freeze_batchnorm", "of every rank: 3d", "frozen_from_eval: 3d: bn.running_mean after a step", _without("3d")),
    (
        "freeze_batchnorm",
        "what derives from a kind",
        "frozen_each_kind: layers in eval mode after train()",
        [(_LAYERS, "[m for m in model.modules() if is_batchnorm(m) and type(m).__base__ is not nn.BatchNorm3d]")],
    ),
    (
        "freeze_batchnorm",
        "a model that is a BN",
        "frozen_each_kind: output of a model that is one",
        [(_LAYERS, "[m for m in model.modules() if is_batchnorm(m) and m is not model]")],
    ),
    ("freeze_batchnorm", "affine, by its place", "frozen_each_kind", [("affine: bool", "*, affine: bool")]),
    ("freeze_batchnorm", "every BN kind's γ and β", "frozen_parameters_of_kinds: trained parameters", "torch_only"),
    ("freeze_batchnorm", "no other kind", "frozen_kinds: instance.running_mean", "by_buffers"),
    (
        "freeze_batchnorm",
        "every BN kind's γ and β, of every rank",
        "frozen_parameters_of_kinds: of each kind",
        [("if affine:", "if affine and not isinstance(layer, nn.BatchNorm3d):")],
    ),
    (
        "freeze_batchnorm",
        "γ and β of a model that is a BN",
        "frozen_parameters_of_kinds: of a model that is one",
        [("if affine:", "if affine and layer is not model:")],
    ),
    ("freeze_batchnorm", "no other norm", "frozen_parameters_of_kinds: gradient of group.bias", "every_norm"),
    (
        "freeze_batchnorm",
        "nothing else, at once: evaluated",
        "frozen_nothing_else: layers in eval mode at once",
        [("    return model", "    for module in model.modules():\n        module.training = False\n    return model")],
    ),
    (
        "freeze_batchnorm",
        "nothing else, at once: trained",
        "frozen_from_eval: 1d: layers in eval mode at once",
        [("    return model", "    return model.train()")],
    ),
    (
        "freeze_batchnorm",
        "nothing else, at once: trained",
        "frozen_from_eval: 3d: layers in eval mode at once",
        [("    return model", "    return model.train()")],
    ),
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
    (
        "freeze_batchnorm",
        "affine=True stops γ and β of a layer that is frozen without",
        "frozen_without_affine: trained parameters, once affine is True",
        [(_LAYERS, f"[layer for layer in {_LAYERS} if not hasattr(layer, 'frozen_from')]")],
    ),
    (
        "freeze_batchnorm",
        "affine=False trains nothing that is stopped already",
        "frozen_without_affine: trained parameters, once it is False again",
        [
            ("if affine:", "if True:"),
            ("for parameter in layer.parameters():", "for name, parameter in layer.named_parameters():"),
            ("requires_grad = False", "requires_grad = layer.frozen_from[1][name] and not affine"),
        ],
    ),
    ("freeze_batchnorm", "in place", "frozen_in_place: output after freezing twice", "a_copy"),
    (
        "freeze_batchnorm",
        "in place: the parameters too",
        "frozen_in_place: has the parameters it had",
        [
            (
                "parameter.requires_grad = False",
                "pass\n            for name, parameter in layer.named_parameters():\n"
                "                setattr(layer, name, nn.Parameter(parameter.detach(), False))",
            )
        ],
    ),
    ("freeze_batchnorm", "returns the model", "frozen_in_place: returns the model it was given", "nothing_returned"),
    ("freeze_batchnorm", "state_dict keys unchanged", "frozen_in_place: state-dict keys", "marked_by_a_buffer"),
    (
        "freeze_batchnorm",
        "twice = once",
        "frozen_in_place: output after freezing twice",
        [('if not hasattr(layer, "frozen_from"):', 'assert not hasattr(layer, "frozen_from")\n        if True:')],
    ),
    ("freeze_batchnorm", "survive train(): the counters", "frozen_while_training: batches counted", "gradients_only"),
    (
        "freeze_batchnorm",
        "the counters stay",
        "frozen_while_training: batches counted",
        [(_RETURN, f"    [layer.num_batches_tracked.zero_() for layer in layers]\n{_RETURN}")],
    ),
    (
        "freeze_batchnorm",
        "every BN, one without a momentum too",
        "frozen_while_training",
        [(_STAY, f"{_STAY}\n        layer.usual = 1 - layer.momentum")],
    ),
    ("freeze_batchnorm", "a frozen model deep-copies", "frozen_copy", "scale_kept"),
    (
        "freeze_batchnorm",
        "a frozen model deep-copies, after a step too",
        "frozen_copy",
        [("    return model", "    for m in layers:\n        m.register_forward_hook(_keep)\n    return model"), _KEEP],
    ),
    (
        "freeze_batchnorm",
        "a copy is one of its own",
        "frozen_copy: modules of the copy in train mode after eval()",
        "bound_to_the_original",
    ),
    (
        "freeze_batchnorm",
        "a copy is one of its own",
        "frozen_copy: layers of the original in eval mode",
        "bound_to_the_original",
    ),
    (
        "freeze_batchnorm",
        "a copy is one of its own: the layers' train",
        "frozen_copy: eval() of a layer of the copy returns",
        "layers_bound_to_the_original",
    ),
    (
        "freeze_batchnorm",
        "train() is as ever, but for the mode",
        "frozen_copy: eval() of a layer of the copy returns",
        "train_returns_nothing",
    ),
    ("unfreeze_batchnorm", "each layer's earlier mode", "unfrozen_modes: layers in eval mode", "always_train"),
    ("unfreeze_batchnorm", "each layer's, whatever the model's", "unfrozen_after_eval", "mode_of_the_model"),
    ("unfreeze_batchnorm", "every BN kind", "unfrozen_after_eval", "one_two_three"),
    ("unfreeze_batchnorm", "every BN kind, of every rank", "unfrozen_each_kind: layers in eval mode", "always_train"),
    (
        "unfreeze_batchnorm",
        "a model that is a BN",
        "unfrozen_each_kind: mode of a model that is a BatchNorm",
        [(_EACH_LAYER, "[m for m in model.modules() if is_batchnorm(m) and m is not model]")],
    ),
    (
        "unfreeze_batchnorm",
        "a model that is a BN",
        "unfrozen_parameters_of_each_kind: of a model that is a BatchNorm",
        [(_EACH_LAYER, "[m for m in model.modules() if is_batchnorm(m) and m is not model]")],
    ),
    (
        "unfreeze_batchnorm",
        "every BN kind's requires_grad",
        "unfrozen_parameters_of_each_kind: trained parameters",
        [("wanted.get(name, parameter.requires_grad)", "isinstance(layer, nn.modules.batchnorm._BatchNorm)")],
    ),
    (
        "unfreeze_batchnorm",
        "each layer's, and no other's: modes",
        "unfrozen_modes: layers in eval mode",
        [(_MODE_BACK, f"model.train()\n            {_MODE_BACK}")],
    ),
    (
        "unfreeze_batchnorm",
        "each layer's, and no other's: InstanceNorm",
        "unfrozen_after_eval: instance.running_mean after a step",
        [
            (
                _MODE_BACK,
                f"{_MODE_BACK}\n            [m.train() for m in model.children() if 'Inst' in type(m).__name__]",
            )
        ],
    ),
    (
        "unfreeze_batchnorm",
        "follows eval() again",
        "unfrozen_follows_train: layers in train mode after eval()",
        [(_MODE_BACK, f"{_MODE_BACK}\n            layer.train = Always(nn.Module.train, layer, True)")],
    ),
    ("unfreeze_batchnorm", "follows train() again", "unfrozen_follows_train", "still_frozen"),
    (
        "unfreeze_batchnorm",
        "trains as ever again: the momentum",
        "unfrozen_follows_train: bn.running_mean after a step",
        "default_momentum",
    ),
    (
        "unfreeze_batchnorm",
        "trains as ever again: an average of all batches",
        "unfrozen_follows_train: body.bn.running_var after a step",
        "default_momentum",
    ),
    ("unfreeze_batchnorm", "earlier requires_grad", "unfrozen_gradients: trained parameters", "never_trainable"),
    ("unfreeze_batchnorm", "each parameter's own", "unfrozen_gradients: trained parameters", "all_trainable"),
    ("unfreeze_batchnorm", "each parameter's own: γ and β", "unfrozen_gradients", "gammas_for_both"),
    ("unfreeze_batchnorm", "after affine=False", "unfrozen_without_affine: trained parameters", "all_trainable"),
    (
        "unfreeze_batchnorm",
        "after affine=False nothing stops",
        "unfrozen_without_affine: gradient of bn.weight",
        [(_WANTED_BACK, "parameter.requires_grad = False")],
    ),
    ("unfreeze_batchnorm", "no other parameter stops", "unfrozen_gradients: gradient of fc.weight", _others(False)),
    ("unfreeze_batchnorm", "no other is trained", "unfrozen_gradients: trained parameters", _others(True)),
    (
        "unfreeze_batchnorm",
        "the state before this freeze, not an earlier one",
        "unfrozen_in_turns",
        "first_freeze_for_good",
    ),
    (
        "unfreeze_batchnorm",
        "nothing to undo",
        "unfrozen_in_turns",
        "only_once",
    ),
    (
        "unfreeze_batchnorm",
        "returns the model, with nothing to undo too",
        "unfrozen_in_turns: returns the model with nothing to undo",
        [
            (
                f"    for layer in {_EACH_LAYER}:\n        if has",
                f"    if not any(hasattr(layer, 'frozen_from') for layer in {_EACH_LAYER}):\n        return None\n"
                f"    for layer in {_EACH_LAYER}:\n        if has",
            )
        ],
    ),
    (
        "unfreeze_batchnorm",
        "every requires_grad, frozen in both ways",
        "unfrozen_from_both_ways: trained parameters",
        [
            (
                "layer.frozen_from = layer.training, wanted",
                "layer.frozen_from = layer.training, wanted if affine else {}",
            )
        ],
    ),
    (
        "unfreeze_batchnorm",
        "every mode, frozen in both ways",
        "unfrozen_from_both_ways: layers in eval mode",
        "second_freeze_remembered",
    ),
    (
        "unfreeze_batchnorm",
        "every mode, frozen in both ways the other way round",
        "unfrozen_from_both_ways: layers in eval mode, the other way round",
        "second_freeze_remembered",
    ),
    (
        "unfreeze_batchnorm",
        "every requires_grad, frozen in both ways the other way round",
        "unfrozen_from_both_ways: trained parameters, the other way round",
        [(_IF_NEW, f"{_IF_NEW[:-1]} or not affine:")],
    ),
    ("unfreeze_batchnorm", "unfreezing twice = once", "unfrozen_twice", "only_once"),
    ("unfreeze_batchnorm", "unfreezing twice = once", "unfrozen_twice: layers in eval mode", "saved_state_kept"),
    ("unfreeze_batchnorm", "in place", "unfrozen_twice: returns the model it was given", "a_copy"),
    ("unfreeze_batchnorm", "freezing twice = once", "unfrozen_after_freezing_twice", "second_freeze_remembered"),
    (
        "unfreeze_batchnorm",
        "a copy's undoing is its own",
        "unfrozen_copy: layers of the original in eval mode",
        [
            (_REMEMBER, f"{_REMEMBER}\n            vars(freeze_batchnorm).setdefault('all', []).append(layer)"),
            (_EACH_LAYER, f"(*{_EACH_LAYER}, *vars(freeze_batchnorm)['all'])"),
        ],
    ),
    (
        "unfreeze_batchnorm",
        "the statistics stay",
        "unfrozen_keys: output",
        [(_MODE_BACK, f"{_MODE_BACK}\n            layer.reset_running_stats()")],
    ),
    (
        "unfreeze_batchnorm",
        "the counters stay",
        "unfrozen_keys: batches counted",
        [(_MODE_BACK, f"{_MODE_BACK}\n            layer.reset_running_stats()")],
    ),
    ("unfreeze_batchnorm", "a copy can be undone", "unfrozen_copy: of the copy", "remembered_elsewhere"),
    (
        "unfreeze_batchnorm",
        "each layer's, whatever another model had",
        "unfrozen_twice: trained parameters",
        "remembered_by_name",
    ),
    (
        "unfreeze_batchnorm",
        "a copy can be undone: requires_grad",
        "unfrozen_copy: trained parameters of the copy",
        "remembered_on_parameters",
    ),
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
    ("recalibrate", "exact: what is between the batches, 1d", "recalibrated_maps: 1d: running_var", "within_only"),
    ("recalibrate", "exact: what is between the batches, 2d", "recalibrated_maps: 2d: running_var", "within_only"),
    ("recalibrate", "exact: what is between the batches, 3d", "recalibrated_maps: 3d: running_var", "within_only"),
    (
        "recalibrate",
        "exact for every rank",
        "recalibrated_maps: 3d: running_mean",
        [("rows = x.double()", "rows = x.double()[..., 0] if x.dim() == 5 else x.double()")],
    ),
    (
        "recalibrate",
        "a model that is a BN",
        "recalibrated_maps",
        [(_FIND, "{name: layer for name, layer in batchnorm_layers(model).items() if name}")],
    ),
    ("recalibrate", "population statistics: unbiased", "recalibrated_whole: bn.running_var", "biased_variance"),
    ("recalibrate", "of its input", "recalibrated_whole", "of_the_output"),
    ("recalibrate", "earlier BNs use their new buffers", "recalibrated_net: bn.running_var", "one_pass"),
    ("recalibrate", "does not depend on the split", "recalibrated_net_again", "training_mode"),
    ("recalibrate", "each BN, in eval mode too", "recalibrated_net_again", "eval_layers_left_out"),
    (
        "recalibrate",
        "each BN, whether it is trained or not",
        "recalibrated_net_again: stem.bn.running_mean",
        "untrained_layers_left_out",
    ),
    ("recalibrate", "each BN, a frozen one too", "recalibrated_net_again: bn.running_mean", "frozen_layers_left_out"),
    ("recalibrate", "call order", "recalibrated_in_call_order", "definition_order"),
    ("recalibrate", "each BN, of every kind", "recalibrated_kinds", "one_two_three"),
    ("recalibrate", "everything in eval while running", "recalibrated_without_dropout", "dropout_active"),
    (
        "recalibrate",
        "everything in eval, whatever the model's own mode",
        "recalibrated_rest: batches counted",
        [("for module, _ in modes:", "for module, _ in modes if model.training else []:")],
    ),
    (
        "recalibrate",
        "each BN, one that stays in eval mode too",
        "recalibrated_net_again",
        [("for layer in list(order):", "for layer in [m for m in order if m.train().training != m.eval().training]:")],
    ),
    (
        "recalibrate",
        "a BN without input stays as it is",
        "recalibrated_reached: head.bn.running_mean",
        [
            (
                "    return model",
                "    [m.reset_running_stats() for m in {*layers.values()} - {*order}]\n    return model",
            )
        ],
    ),
    (
        "recalibrate",
        "a BN without input is no error",
        "recalibrated_reached",
        [("for layer in list(order):", "for layer in layers.values():")],
    ),
    ("recalibrate", "in place", "recalibrated_rest", "a_copy"),
    ("recalibrate", "in place: the buffers", "recalibrated_rest: has the buffers it had", "new_buffers"),
    (
        "recalibrate",
        "in place: the buffers' dtype",
        "recalibrated_kinds_as_before: dtypes of a float32 layer's buffers",
        "float64_buffers",
    ),
    ("recalibrate", "returns the model", "recalibrated_rest: returns the model it was given", "a_copy"),
    ("recalibrate", "weights as before", "recalibrated_rest: weights", "affine_reset"),
    ("recalibrate", "modes as before", "recalibrated_rest: layers in eval mode", "left_in_train"),
    ("recalibrate", "momentum as before", "recalibrated_rest: momentum", "momentum_changed"),
    ("recalibrate", "counters as before", "recalibrated_rest: batches counted", "counter_reset"),
    *(
        (
            "recalibrate",
            f"{what} as before, of every kind",
            f"recalibrated_kinds_as_before: {seen}",
            [(_RETURN, f"    [{do} for layer in order if type(layer) is nn.SyncBatchNorm]\n{_RETURN}")],
        )
        for what, seen, do in (
            ("modes", "layers in eval mode", "layer.eval()"),
            ("momentum", "momentum", "setattr(layer, 'momentum', 0.1)"),
            ("counters", "batches counted", "layer.num_batches_tracked.zero_()"),
        )
    ),
    (
        "recalibrate",
        "eps as before",
        "recalibrated_rest: next output",
        [(_RETURN, f"    for layer in order:\n        layer.eps = 1e-5\n{_RETURN}")],
    ),
    (
        "recalibrate",
        "the batches as before",
        "recalibrated_rest: inputs changed",
        [(_RETURN, f"    [batch.zero_() for batch in batches]\n{_RETURN}")],
    ),
    (
        "recalibrate",
        "the list of batches as before",
        "recalibrated_rest: batches in the list",
        [(_RETURN, f"    getattr(batches, 'clear', list)()\n{_RETURN}")],
    ),
    (
        "recalibrate",
        "requires_grad as before",
        "recalibrated_rest: trained parameters",
        [("    return model", "    return model.requires_grad_(True)")],
    ),
    (
        "recalibrate",
        "gradients as before",
        "recalibrated_rest: gradients kept",
        [("    return model", "    model.zero_grad()\n    return model")],
    ),
    (
        "recalibrate",
        "the grad mode as before",
        "recalibrated_rest: gradients are recorded",
        [("with torch.no_grad():", "torch.set_grad_enabled(False)\n        if True:")],
    ),
    (
        "recalibrate",
        "hooks of others as before",
        "recalibrated_rest: hooks",
        [("handle.remove()", "[layer._forward_pre_hooks.clear() for layer in hooks]")],
    ),
    (
        "recalibrate",
        "hooks of others as before, of the other kind too",
        "recalibrated_rest: hooks",
        [("handle.remove()", "handle.remove()\n            [layer._forward_hooks.clear() for layer in hooks]")],
    ),
    (
        "recalibrate",
        "the grad mode as before, off too",
        "recalibrated_reached: gradients are recorded where they were not",
        [(_RETURN, f"    torch.set_grad_enabled(True)\n{_RETURN}")],
    ),
    (
        "recalibrate",
        "modes as before, after an error too",
        "recalibrated_refusals: layers in eval mode after an error",
        "left_in_eval_after_an_error",
    ),
    (
        "recalibrate",
        "no hooks left, after an error too",
        "recalibrated_refusals: hooks after an error",
        [
            (
                "        finally:\n            for",
                "        except IndexError:\n            pass\n        else:\n            for",
            )
        ],
    ),
    (
        "recalibrate",
        "statistics as before, after an error",
        "recalibrated_refusals: statistics after an error",
        "refused_halfway",
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
    (
        "recalibrate",
        "a BN called twice in one pass, as many calls as layers",
        "recalibrated_refusals: error for a layer called twice",
        [("if called.count(layer) > 1:", "if len(called) > len(layers):")],
    ),
    (
        "recalibrate",
        "only a BN that is called twice: not one of two names",
        "recalibrated_reached",
        [
            (
                "    order, lengths = [], []",
                "    everywhere = [m for _, m in model.named_modules(remove_duplicate=False) if is_batchnorm(m)]\n"
                "    if len(everywhere) > len(layers):\n        raise ValueError\n    order, lengths = [], []",
            )
        ],
    ),
    ("GhostBatchNorm", "statistics per virtual batch", "ghost_of_table: y", "whole_batch"),
    ("GhostBatchNorm", "split on dim 0, the last smaller", "ghost_of_table", "equal_parts"),
    ("GhostBatchNorm", "split, nothing left over", "ghost_of_table: y of parts of the same size", "whole_batch"),
    ("GhostBatchNorm", "the input is not changed", "ghost_of_table: inputs changed", "written_into_the_input"),
    ("GhostBatchNorm", "eps is 1e-5 by default", "ghost_of_table: y", [("eps: float = 1e-5", "eps: float = 1e-3")]),
    ("GhostBatchNorm", "eps", "ghost_of_maps: y for 4 axes", "eps_ignored"),
    ("GhostBatchNorm", "any rank: 3", "ghost_of_maps: y for 3 axes", _of_rank(3)),
    ("GhostBatchNorm", "any rank: 4", "ghost_of_maps: y for 4 axes", _of_rank(4)),
    ("GhostBatchNorm", "any rank: 5", "ghost_of_maps: y for 5 axes", _of_rank(5)),
    ("GhostBatchNorm", "the last is smaller", "ghost_of_maps: y for 4 axes", "rest_joined"),
    ("GhostBatchNorm", "a batch smaller than a virtual one", "ghost_of_small_batch", "number_of_parts"),
    (
        "GhostBatchNorm",
        "virtual batches of one sample",
        "ghost_of_small_batch: y of virtual batches of one sample",
        [(_SPLIT, "x.split(max(2, self.virtual_batch_size))")],
    ),
    ("GhostBatchNorm", "one EMA update per virtual batch", "ghost_updates: running_mean", "one_update"),
    ("GhostBatchNorm", "one EMA update per virtual batch, a smaller one too", "ghost_updates", "rest_not_counted"),
    ("GhostBatchNorm", "the output is as long as the input", "ghost_updates: samples that come out", "rest_dropped"),
    (
        "GhostBatchNorm",
        "virtual batches are counted",
        "ghost_updates: a counter, if there is one, counts parts",
        "counted_once",
    ),
    ("GhostBatchNorm", "in order", "ghost_updates", "reversed_updates"),
    ("GhostBatchNorm", "unbiased running_var", "ghost_updates: running_var", "biased_running_var"),
    ("GhostBatchNorm", "momentum is 0.1 by default", "ghost_updates_by_default", [("= 0.1,", "= 0.2,")]),
    ("GhostBatchNorm", "one EMA update per virtual batch: rank 3", "ghost_updates: running_mean at last", _of_rank(3)),
    ("GhostBatchNorm", "one EMA update per virtual batch: rank 5", "ghost_updates: running_var at last", _of_rank(5)),
    (
        "GhostBatchNorm",
        "one EMA update per virtual batch, whether gradients are recorded or not",
        "ghost_updates: running_var at last",
        [("if not self.training:", "if not (self.training and torch.is_grad_enabled()):")],
    ),
    ("GhostBatchNorm", "eval as BatchNorm", "ghost_in_eval", "ghosts_in_eval"),
    ("GhostBatchNorm", "eval as BatchNorm: a single sample", "ghost_in_eval: y of one sample", "ghosts_in_eval"),
    ("GhostBatchNorm", "eval as BatchNorm, any rank", "ghost_in_eval: y for 2 axes", _in_eval("batch_norm(x, *both)")),
    ("GhostBatchNorm", "eval as BatchNorm, any rank", "ghost_in_eval: y for 3 axes", _in_eval("batch_norm(x, *both)")),
    ("GhostBatchNorm", "eval as BatchNorm, any rank", "ghost_in_eval: y for 5 axes", _in_eval("batch_norm(x, *both)")),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: eps",
        "ghost_in_eval: y for 4 axes",
        _in_eval("batch_norm(x, *both, self.weight, self.bias, self.running_mean is None)"),
    ),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: eps, without statistics",
        "ghost_in_eval_without_statistics",
        _in_eval("batch_norm(x, *both, self.weight, self.bias, self.running_mean is None)"),
    ),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: the statistics stay",
        "ghost_in_eval: running_mean",
        _in_eval("super().train().forward(x) if len(x) > 1 else super().eval().forward(x)"),
    ),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: gradients",
        "ghost_in_eval: dx of one sample",
        _in_eval("super().forward(x.detach())"),
    ),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: gradients of γ",
        "ghost_in_eval: its dweight",
        _in_eval("torch.no_grad()(super().forward)(x)"),
    ),
    (
        "GhostBatchNorm",
        "eval as BatchNorm: the counter stays",
        "ghost_in_eval: a counter, if there is one, stays",
        _in_eval("(self.num_batches_tracked is None or self.num_batches_tracked.add_(1), super().forward(x))[1]"),
    ),
    ("GhostBatchNorm", "eval without statistics", "ghost_in_eval_without_statistics", "ghosts_in_eval"),
    ("GhostBatchNorm", "gradients through the statistics", "ghost_gradients: dx", "constant_statistics"),
    ("GhostBatchNorm", "no history in the buffers", "ghost_gradients: statistics with a history", "with_history"),
    ("GhostBatchNorm", "gradients of γ, of every part", "ghost_gradients: dweight", "rest_dropped"),
    (
        "GhostBatchNorm",
        "gradients of β, of every part",
        "ghost_gradients: dbias",
        [("torch.cat([normalise(part)", "torch.cat([normalise(part) if len(part) > 1 else normalise(part).detach()")],
    ),
    (
        "GhostBatchNorm",
        "arguments by their names",
        "ghost_arguments",
        [("virtual_batch_size: int,", "virtual_batch_size: int,\n        /,")],
    ),
    (
        "GhostBatchNorm",
        "γ = 1 and β = 0 at first",
        "ghost_arguments: y of a new layer",
        [(_SET_SIZE, f"{_SET_SIZE}\n        self.weight is None or nn.init.zeros_(self.weight)")],
    ),
    (
        "GhostBatchNorm",
        "training without statistics",
        "ghost_arguments: y of affine=True, track_running_stats=False in train mode",
        "untracked_as_a_whole",
    ),
    *(
        ("GhostBatchNorm", "affine and track_running_stats", f"ghost_arguments: y of {options} mode", mistake)
        for options, mistake in {
            "affine=True, track_running_stats=True in train": "whole_batch",
            "affine=True, track_running_stats=True in eval": "eps_ignored",
            "affine=True, track_running_stats=False in eval": "eps_ignored",
            "affine=False, track_running_stats=True in train": "affine_ignored",
            "affine=False, track_running_stats=True in eval": "affine_ignored",
            "affine=False, track_running_stats=False in train": "untracked_as_a_whole",
            "affine=False, track_running_stats=False in eval": "affine_ignored",
        }.items()
    ),
    (
        "GhostBatchNorm",
        "the dtype of the input",
        "ghost_arguments: dtype of y for float32",
        [("return torch.cat([normalise(part)", "return torch.cat([normalise(part).double()")],
    ),
    ("GhostBatchNorm", "momentum, by its place", "ghost_arguments: running_var", "momentum_of_the_old"),
    *(
        ("GhostBatchNorm", f"momentum={momentum}", f"ghost_arguments: {buffer} of momentum={momentum}", mistake)
        for buffer in ("running_mean", "running_var")
        for momentum, mistake in (
            ("0.0", "zero_and_none_taken_for_the_default"),
            ("None", "none_taken_for_the_default"),
        )
    ),
    (
        "GhostBatchNorm",
        "momentum=None: of all batches, not of one",
        "ghost_arguments: running_mean of momentum=None",
        [
            (
                "normalise = super().forward",
                "normalise = super().forward\n"
                "        self.num_batches_tracked is None or self.num_batches_tracked.zero_()",
            )
        ],
    ),
    ("GhostBatchNorm", "affine", "ghost_arguments: parameters of affine=False", "affine_ignored"),
    (
        "GhostBatchNorm",
        "track_running_stats",
        "ghost_arguments: statistics of track_running_stats=False",
        "tracking_ignored",
    ),
    ("GhostBatchNorm", "device", "ghost_arguments: devices of device='meta'", "device_and_dtype_ignored"),
    ("GhostBatchNorm", "dtype", "ghost_arguments: dtypes of dtype=torch.float64", "device_and_dtype_ignored"),
    (
        "GhostBatchNorm",
        "dtype: of γ and β too",
        "ghost_arguments: dtypes of dtype=torch.float64",
        [
            (
                _SET_SIZE,
                f"{_SET_SIZE}\n        if affine:\n"
                "            self.weight = nn.Parameter(torch.ones(num_features, device=device))",
            )
        ],
    ),
    ("momentum_for_accumulation", "k updates forget as much as one", "accumulated", "divided"),
    ("momentum_for_accumulation", "one update is one", "accumulated_once", "one_less"),
    (
        "momentum_for_accumulation",
        "a float",
        "accumulated_once: m is a float",
        [("return -math.expm1(", "return torch.ones((), dtype=torch.float64) * -math.expm1(")],
    ),
    (
        "momentum_for_accumulation",
        "a float, of several updates too",
        "accumulated: m is a float",
        [("return -math.expm1(", "return 1.0 if micro_batches < 2 else torch.tensor(1.0) * -math.expm1(")],
    ),
    (
        "momentum_for_accumulation",
        "arguments by their names",
        "accumulated_once",
        [("micro_batches: int)", "micro_batches: int, /)")],
    ),
    ("momentum_for_accumulation", "large momentum, many updates", "accumulated_often: m", "divided"),
    ("momentum_for_accumulation", "everything forgotten", "accumulated_often", "no_logarithm_of_nothing"),
    (
        "momentum_for_accumulation",
        "everything forgotten: a momentum of 1",
        "accumulated_often: m for a momentum of 1",
        [("return 1.0", "return 1.0 / micro_batches")],
    ),
    ("replace_batchnorm", "every BN replaced", "replaced_net: y", "on_top"),
    ("replace_batchnorm", "nested right", "replaced_net: layers", "dotted_names"),
    ("replace_batchnorm", "every BN kind", "replaced_kinds: layers", "one_two_three"),
    ("replace_batchnorm", "children that are None", "replaced_kinds", "none_walked_into"),
    ("replace_batchnorm", "by make(bn)", "replaced_by_something_around", "the_new_replaced_too"),
    ("replace_batchnorm", "every BN kind, of every rank", "replaced_kinds: layers of each kind", "one_two_three"),
    (
        "replace_batchnorm",
        "every BN kind, of every rank",
        "replaced_kinds: layers of each kind",
        [(_EACH_LAYER, "[m for m in model.modules() if is_batchnorm(m) and not isinstance(m, nn.BatchNorm3d)]")],
    ),
    (
        "replace_batchnorm",
        "make is given the layer as it is: mode",
        f"replaced_by_something_around: {_GIVEN}",
        [(_MADE, "make(copy.deepcopy(layer, memo).train())")],
    ),
    (
        "replace_batchnorm",
        "make is given the layer as it is: parameters",
        f"replaced_by_something_around: {_GIVEN}",
        [(_MADE, "make(copy.deepcopy(layer, memo).requires_grad_(False))")],
    ),
    (
        "replace_batchnorm",
        "what make keeps is as it was: mode",
        "replaced_by_something_around: layers in eval mode inside",
        [("made if layer.training else made.eval()", "made.train()")],
    ),
    (
        "replace_batchnorm",
        "once per layer",
        f"replaced_by_something_around: {_GIVEN}",
        [(_MADE, f"({_MADE}, make(copy.deepcopy(layer)))[0]")],
    ),
    ("replace_batchnorm", "a BN itself", "replaced_root: kind", "root_left"),
    (
        "replace_batchnorm",
        "a shared module is shared in the output",
        "replaced_shared: one layer for a BatchNorm used in two blocks",
        "made_anew",
    ),
    ("replace_batchnorm", "shared in the output", "replaced_shared: kinds", "second_name_left"),
    ("replace_batchnorm", "shared: any layer", "replaced_shared: one linear layer", "child_by_child"),
    ("replace_batchnorm", "shared: a block", "replaced_shared: one block", "child_by_child"),
    ("replace_batchnorm", "shared: a weight", "replaced_shared: one tied weight", "child_by_child"),
    (
        "replace_batchnorm",
        "shared: a weight of a layer that is kept inside",
        "replaced_shared: one weight, tied to a layer that is kept inside",
        "layer_copied_alone",
    ),
    ("replace_batchnorm", "shared: replaced once", "replaced_shared", "visited_again"),
    ("replace_batchnorm", "a new model", "replaced_input: result is the input", "in_place"),
    ("replace_batchnorm", "input not changed", "replaced_input: layers of the input", "shallow_copy"),
    (
        "replace_batchnorm",
        "input not changed: modes",
        "replaced_input: modules of the input in eval mode",
        [("    memo = deepcopy_memo(model)", "    memo = deepcopy_memo(model)\n    model.eval()")],
    ),
    (
        "replace_batchnorm",
        "input not changed: requires_grad",
        "replaced_input: trained parameters of the input",
        [("    memo = deepcopy_memo(model)", "    memo = deepcopy_memo(model)\n    model.requires_grad_(True)")],
    ),
    (
        "replace_batchnorm",
        "only BN replaced: modes of the rest",
        "replaced_input: kept modules in eval mode",
        [("return copy.deepcopy(model, memo)", "return copy.deepcopy(model, memo).train()")],
    ),
    (
        "replace_batchnorm",
        "only BN replaced: requires_grad of the rest",
        "replaced_input: trained parameters of kept modules",
        [("return copy.deepcopy(model, memo)", "return copy.deepcopy(model, memo).requires_grad_(True)")],
    ),
    (
        "replace_batchnorm",
        "input not changed, itself a BN",
        "replaced_input_kept_inside: output of a BatchNorm afterwards",
        "root_of_the_original",
    ),
    (
        "replace_batchnorm",
        "input not changed by what is kept of it",
        "replaced_input_kept_inside: output of the input afterwards",
        "make_of_the_original",
    ),
    ("weight_decay_groups", "norms get 0, all of torch's", "decay_of_norms: without", "instance_norm_decays"),
    *(
        (
            "weight_decay_groups",
            f"norms get 0: {kind}",
            "decay_of_norms: without",
            [(_IS_NORM, f"not isinstance(m, nn.{kind}) and ({_IS_NORM})")],
        )
        for kind in _NORMS
    ),
    (
        "weight_decay_groups",
        "norms get 0: the course's",
        "decay_of_norms: without",
        [(_IS_NORM, "isinstance(m, norms)")],
    ),
    (
        "weight_decay_groups",
        "norms get 0: a model that is one",
        "decay_of_one_layer: norm, none",
        [("for m in model.modules()", "for m in model.children()")],
    ),
    (
        "weight_decay_groups",
        "biases get 0: of a model that is one layer",
        "decay_of_one_layer: linear, none",
        [('"bias" in name.rpartition(".")[2]', '".bias" in name')],
    ),
    ("weight_decay_groups", "two groups, one of them empty", "decay_of_one_layer", "empty_group_left_out"),
    ("weight_decay_groups", "biases get 0, whatever their names", "decay_of_others: without", "bias_by_beginning"),
    (
        "weight_decay_groups",
        "biases get 0, whatever they belong to",
        "decay_of_others: without",
        [
            (
                '"bias" in name.rpartition(".")[2]',
                '"bias" in name.rpartition(".")[2] and not name.startswith("own.b")',
            )
        ],
    ),
    ("weight_decay_groups", "biases, not what is in them", "decay_of_others: with decay", "bias_in_a_layers_name"),
    ("weight_decay_groups", "the others decay: embeddings", "decay_of_others: with decay", "embeddings_spared"),
    (
        "weight_decay_groups",
        "the first decays as it is told",
        "decay_of_norms: conv.weight after a step",
        [('"weight_decay": weight_decay}', '"weight_decay": weight_decay / 2}')],
    ),
    (
        "weight_decay_groups",
        "requires_grad as before",
        "decay_of_trainable: trained afterwards",
        [("    return [", "    model.requires_grad_(True)\n    return [")],
    ),
    ("weight_decay_groups", "norms, not what has one axis", "decay_of_others: with decay", "by_axes"),
    ("weight_decay_groups", "biases get 0", "decay_of_others: without", "bias_by_ending"),
    ("weight_decay_groups", "the others decay", "decay_of_others: with decay", "known_layers_only"),
    ("weight_decay_groups", "trainable parameters only", "decay_of_trainable: listed", "frozen_included"),
    ("weight_decay_groups", "exactly once", "decay_of_shared: listed", "listed_twice"),
    ("weight_decay_groups", "exactly once, a tied weight too", "decay_of_shared: listed", "tied_weight_twice"),
    ("weight_decay_groups", "without decay if one of its uses is", "decay_of_norms: without", "last_use_decides"),
    ("weight_decay_groups", "first decay, then none", "decay_form", "order_swapped"),
    ("weight_decay_groups", "in the model's order", "decay_form: in the model's order", "sorted_by_name"),
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
