"""What people get wrong in problem set 4."""

import copy

import torch

from course_lib.misconceptions import Misconception, reference
from course_lib.running_stats import is_batchnorm

SWITCHES = "chapter 4, «Four switches»"
FINDING = "chapter 4, «Finding every layer»"
GRADIENTS_OFF = "chapter 4, «Gradients off, buffers on»"
EVAL_ONLY = "chapter 4, «eval() until the next train()»"
NO_TRACKING = "chapter 4, «track_running_stats=False: always the batch»"
FREEZING = "chapter 4, «Three ways to freeze»"
OVERRIDE = "chapter 4, «Override train()»"
AFFINE = "chapter 4, «Scale and shift while frozen»"
UNDOING = "chapter 4, «Undoing a freeze»"
LAYERWISE = "chapter 4, «Recalibration, layer by layer»"
COUNTED = "chapter 4, «Each value counts once»"
ORDER = "chapter 4, «Call order, not definition order»"
AS_BEFORE = "chapter 4, «Leave everything else alone»"
AGAIN = "chapter 4, «Read the data again and again»"
ONE_PASS = "chapter 4, «The one-pass way: PreciseBN and AdaBN»"
MOMENTUM = "chapter 4, «A momentum for k updates»"
GHOST = "chapter 4, «Ghost batches»"
SPLIT = "chapter 4, «Split, and in order»"
UPDATES = "chapter 4, «Updates per virtual batch»"
REPLACING = "chapter 4, «Replacing layers in a model»"
SHARED = "chapter 4, «Shared layers stay shared»"
A_NEW_ONE = "chapter 4, «A new model, the old one untouched»"
DECAY = "chapter 4, «Weight decay: which parameters»"
ONCE = "chapter 4, «Each parameter once»"


def _freeze(name, change, hint, read, seen):
    return Misconception("finetuning.freeze_batchnorm", name, change, hint, read, seen)


def _unfreeze(name, change, hint, read, seen):
    return Misconception("finetuning.unfreeze_batchnorm", name, change, hint, read, seen)


def _recalibrate(name, change, hint, read, seen):
    return Misconception("finetuning.recalibrate", name, change, hint, read, seen)


def _ghost(name, change, hint, read, seen):
    return Misconception("finetuning.GhostBatchNorm", name, change, hint, read, seen)


def _momentum(name, new, hint, read, seen, *further):
    change = ((_M, f"return {new}"), *further)
    return Misconception("finetuning.momentum_for_accumulation", name, change, hint, read, seen)


def _replace(name, change, hint, read, seen):
    return Misconception("finetuning.replace_batchnorm", name, change, hint, read, seen)


def _groups(name, change, hint, read, seen):
    return Misconception("finetuning.weight_decay_groups", name, change, hint, read, seen)


_OF_RANKS = "[m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]"
_OF_TORCH = "[m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]"
_RETURN = "    return model"
_TRAIN_OF_THIS_MODEL = """    def train(mode=True):
        nn.Module.train(model, mode)
        for layer in layers:
            layer.training = False
        return model

    model.train = train
    return model"""
# freeze_batchnorm
_FIND = "batchnorm_layers(model, tracked=True).values()"
_OVERRIDE = "layer.train = Always(nn.Module.train, layer, False)"
_MODE = "        layer.train()\n"
_BOUND = "layer.train = lambda mode=True, layer=layer: setattr(layer, 'training', False) or layer"
_IF_AFFINE = "if affine:"
_EACH_PARAMETER = "for parameter in layer.parameters():"
_STOP = "parameter.requires_grad = False"
# unfreeze_batchnorm, checked and edited together with freeze_batchnorm
_FIRST_TIME = 'if not hasattr(layer, "frozen_from"):'
_REMEMBER = "layer.frozen_from = layer.training, wanted"
_FIND_FROZEN = "batchnorm_layers(model).values()"
_IF_FROZEN = 'if hasattr(layer, "frozen_from"):'
_RECALL = "training, wanted = layer.frozen_from"
_FORGET = "del layer.train, layer.frozen_from"
_MODE_BACK = "layer.train(training)"
_WANTED_BACK = "parameter.requires_grad = wanted.get(name, parameter.requires_grad)"
# recalibrate
_LAYERS = "layers = batchnorm_layers(model, tracked=True)"
_ONCE_ONLY = "if isinstance(batches, Tensor | Iterator):"
_CALLED = "if called.count(layer) > 1:"
_EVAL = "module.training = False"
_NO_GRAD = "with torch.no_grad():"
_EACH = "for layer in list(order):"
_START = "n, mean, m2 = 0, 0.0, 0.0"
_ROWS = "rows = x.double().movedim(1, 0).flatten(1)"
_TO_MEAN = "mean = mean + delta * (count / (n + count))"
_M2 = "m2 = m2 + own + delta.square() * (n * count / (n + count))"
_COUNT = "n += count"
_SET_MEAN = "layer.running_mean.copy_(mean)"
_SET_VAR = "layer.running_var.copy_(m2 / (n - 1))"
_MODES_BACK = "module.training = training"
_RESTORE = "for buffer, value in saved:"
# GhostBatchNorm
_SUPER = "super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)"
_IN_EVAL = "return super().forward(x)"
_NORMALISE = "normalise = super().forward"
_PARTS = "x.split(self.virtual_batch_size)"
_GHOSTS = f"return torch.cat([normalise(part) for part in {_PARTS}])"
_PLAIN = "batch_norm({}, None, None, self.weight, self.bias, True, 0.0, self.eps)"
# momentum_for_accumulation
_M = "return -math.expm1(math.log1p(-momentum) / micro_batches)"
# replace_batchnorm
_TO_REPLACE = "batchnorm_layers(model).values()"
_MADE = "make(copy.deepcopy(layer, memo))"
# weight_decay_groups
_NORMS = "(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)"
_OF_NORMS = "{id(p) for m in model.modules() if is_batchnorm(m) or isinstance(m, norms) for p in m.parameters()}"
_IS_BIAS = 'if "bias" in name.rpartition(".")[2]:'
_TRAINABLE = "[parameter for parameter in model.parameters() if parameter.requires_grad]"
_DECAYING = "[p for p in trainable if id(p) not in spared]"
_FIRST = '{"params": [p for p in trainable if id(p) not in spared], "weight_decay": weight_decay}'
_SECOND = '{"params": [p for p in trainable if id(p) in spared], "weight_decay": 0.0}'


def _by_hand(running_var="var * (n / (n - 1))", var="var", mean="mean", into_buffer=".detach()"):
    """Ghost batches without torch's layer, as edits: what goes into the buffers, and what normalises."""
    body = f"""outputs = []
        for part in {_PARTS}:
            axes, n = (0, *range(2, part.dim())), part[:, :1].numel()
            mean, var = part.mean(axes, keepdim=True), part.var(axes, correction=0, keepdim=True)
            if self.running_mean is not None:
                self.running_mean.lerp_(mean{into_buffer}.flatten(), self.momentum)
                self.running_var.lerp_(({running_var}){into_buffer}.flatten(), self.momentum)
            y = (part - {mean}) / ({var} + self.eps).sqrt()
            if self.weight is not None:
                y = y * self.weight.view_as(mean) + self.bias.view_as(mean)
            outputs.append(y)
        return torch.cat(outputs)"""
    return ((_GHOSTS, body),)


def _update_bn(model, batches):
    torch.optim.swa_utils.update_bn(batches, model)
    return model


def _children(module):
    """All children by name, also one that has two names. One that was taken out is None."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _walk(*, start=copy.deepcopy, find=is_batchnorm, children=_children, root=True, deep=True):
    """Replacement as most people write it, a walk over the children: makes a new layer in every place."""

    def replace_batchnorm(model, make):
        def walk(module):
            for name, child in children(module):
                if find(child):
                    setattr(module, name, make(child))
                elif deep:
                    walk(child)
            return module

        model = start(model)
        return make(model) if root and find(model) else walk(model)

    return replace_batchnorm


def _walk_into_the_new(model, make):
    def walk(module):
        for name, child in list(module.named_children()):
            if is_batchnorm(child):
                setattr(module, name, make(child))
            walk(getattr(module, name))
        return module

    return make(copy.deepcopy(model)) if is_batchnorm(model) else walk(copy.deepcopy(model))


def _set_by_dotted_name(model, make):
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if is_batchnorm(module):
            if not name:
                return make(module)
            setattr(model, name, make(module))
    return model


def _root_of_the_original(model, make):
    return make(model) if is_batchnorm(model) else reference("finetuning.replace_batchnorm")(model, make)


def _table_of_layers_only(model, make):
    """A table from layer to replacement, and no list of the blocks that have been walked through."""
    model, made = copy.deepcopy(model), {}

    def walk(module):
        for name, child in _children(module):
            if is_batchnorm(child):
                made[child] = made[child] if child in made else make(child)
                setattr(module, name, made[child])
            else:
                walk(child)
        return module

    return make(model) if is_batchnorm(model) else walk(model)


def _none_walked_into(model, make):
    """Right but for children that were taken out."""
    model, made, walked = copy.deepcopy(model), {}, set()

    def walk(module):
        walked.add(module)
        for name, child in list(module._modules.items()):
            if is_batchnorm(child):
                made[child] = made[child] if child in made else make(child)
                module._modules[name] = made[child]
            elif child not in walked:
                walk(child)
        return module

    return make(model) if is_batchnorm(model) else walk(model)


def _child_by_child(model, make):
    """Copies every module by itself."""
    made = {}

    def rebuilt(module):
        if is_batchnorm(module):
            made[module] = made[module] if module in made else make(copy.deepcopy(module))
            return made[module]
        if not module._modules:
            return copy.deepcopy(module)
        new = copy.copy(module)
        new._modules = {name: rebuilt(child) for name, child in _children(module)}
        return new

    return rebuilt(model)


def _without_empty_groups(model, weight_decay):
    groups = reference("finetuning.weight_decay_groups")(model, weight_decay)
    return [group for group in groups if group["params"]]


# fmt: off
MISCONCEPTIONS = [
    # --- freeze_batchnorm
    _freeze(
        "gradients_only", ((_OVERRIDE, "pass"), (_MODE, "\n")),
        "Only gamma and beta are stopped: in training mode every forward still moves the running statistics.",
        GRADIENTS_OFF, "requires_grad = False on the layers' parameters, in most transfer-learning tutorials",
    ),
    _freeze(
        "eval_once", ((_OVERRIDE, "pass"), (_MODE, "        layer.eval()\n")),
        "The layers are put into eval mode once: the next time the model is put into training mode undoes it.",
        EVAL_ONLY, "bn.eval() before the training loop, which begins with model.train()",
    ),
    _freeze(
        "no_tracking", ((_OVERRIDE, "layer.track_running_stats = False"), (_MODE, "\n")),
        "Without tracking a layer normalises with the batch's statistics: frozen means with those it has.",
        NO_TRACKING, "track_running_stats = False, recommended in forum answers",
    ),
    _freeze(
        "momentum_zero", ((_OVERRIDE, "layer.momentum = 0.0"), (_MODE, "\n")),
        "With momentum 0 the buffers stay, but in training mode the batch still normalises itself.",
        SWITCHES, "momentum = 0 as a switch",
    ),
    _freeze(
        "one_two_three", ((_FIND, _OF_RANKS),),
        "Some kinds of BatchNorm are not found: SyncBatchNorm, lazy layers and others are no BatchNorm1d, 2d or 3d.",
        FINDING, "isinstance(m, (BatchNorm1d, BatchNorm2d, BatchNorm3d))",
    ),
    _freeze(
        "torch_only", ((_FIND, _OF_TORCH),),
        "The course's own BatchNorm is not found: it derives from no layer of PyTorch's.",
        FINDING, "isinstance(m, _BatchNorm)",
    ),
    _freeze(
        "by_buffers", ((_FIND, '[m for m in model.modules() if hasattr(m, "running_mean")]'),),
        "Another norm that keeps running statistics, InstanceNorm, is frozen as well.",
        FINDING, "hasattr(m, 'running_mean')",
    ),
    _freeze(
        "every_norm", ((_FIND, '[m for m in model.modules() if "Norm" in type(m).__name__]'),),
        "Norms of other kinds are frozen as well: layer, group and instance normalisation are no BatchNorm.",
        FINDING, "'Norm' in type(m).__name__",
    ),
    _freeze(
        "on_top", ((_FIND, "[m for m in model.children() if is_batchnorm(m)]"),),
        "Only the model's own children are frozen: layers inside its blocks are not found.",
        FINDING, "a loop over model.children()",
    ),
    _freeze(
        "whole_model", ((_RETURN, "    model.train = Always(nn.Module.train, model, False)\n    return model.eval()"),),
        "The whole model stays in eval mode: dropout and all else still has to change modes with the model.",
        OVERRIDE, "overriding train() of the model by nothing",
    ),
    _freeze(
        "bound_to_the_original",
        ((_OVERRIDE, "pass"), (_MODE, "        layer.training = False\n"), (_RETURN, _TRAIN_OF_THIS_MODEL)),
        "A copy that changes modes changes the original instead: what replaced its train remembers the model.",
        OVERRIDE, "an inner function set as the model's train",
    ),
    _freeze(
        "layers_bound_to_the_original",
        ((_OVERRIDE, _BOUND),),
        "The train of a copied layer is still the original's: what replaced it remembers the layer it was made for.",
        OVERRIDE, "a lambda or inner function set as the layer's train",
    ),
    _freeze(
        "train_returns_nothing",
        ((_OVERRIDE, "layer.train = lambda mode=True: None"), (_MODE, "        layer.training = False\n")),
        "What replaced the layers' train returns nothing: train and eval return the module itself.",
        OVERRIDE, "a function that does nothing set as the layer's train",
    ),
    _freeze(
        "all_parameters", ((_EACH_PARAMETER, "for parameter in model.parameters():"),),
        "Every parameter of the model is stopped: only those of the BatchNorm layers should be.",
        SWITCHES, "the loop that freezes a backbone",
    ),
    _freeze(
        "affine_ignored", ((_IF_AFFINE, "if True:"),),
        "gamma and beta are stopped with affine=False too: then their requires_grad stays as it is.",
        AFFINE, "an argument that is accepted and not used",
    ),
    _freeze(
        "affine_forgotten", ((_IF_AFFINE, "if False:"),),
        "gamma and beta are still trained: with affine=True they stop as well.",
        AFFINE, "answers that stop after the mode",
    ),
    _freeze(
        "affine_as_value", ((_IF_AFFINE, "if True:"), (_STOP, "parameter.requires_grad = not affine")),
        "affine=False turns the training of gamma and beta on: it should leave it as it was.",
        AFFINE, "requires_grad_(not affine)",
    ),
    _freeze(
        "gamma_only", ((_EACH_PARAMETER, "for parameter in [p for p in [layer.weight] if p is not None]:"),),
        "Only gamma is stopped: beta is a parameter of the layer too.",
        AFFINE, "bn.weight.requires_grad = False, and no second line",
    ),
    _freeze(
        "a_copy", ((_FIND, "batchnorm_layers(model := copy.deepcopy(model), tracked=True).values()"),),
        "A frozen copy is returned and the model is as before: freeze the one that was given.",
        FREEZING, "copying first, out of caution",
    ),
    _freeze(
        "nothing_returned", ((_RETURN, "    return None"),),
        "The layers are frozen, but the model is not returned.",
        FREEZING, "functions that work in place",
    ),
    _freeze(
        "marked_by_a_buffer",
        ((_MODE, "        layer.train()\n        layer.register_buffer('frozen', torch.ones(()))\n"),),
        "The state dict has got new keys: a checkpoint of this model loads nowhere else.",
        FREEZING, "a registered buffer as a flag",
    ),
    _freeze(
        "scale_kept",
        ((
            _MODE,
            "        layer.train()\n"
            "        if layer.weight is not None and not torch.nn.parameter.is_lazy(layer.weight):\n"
            "            layer.scale = layer.weight * 1\n",
        ),),
        "A tensor with autograd history was left on the layer: with it the model cannot be copied.",
        FREEZING, "precomputing gamma / sqrt(var + eps) for speed",
    ),
    # --- unfreeze_batchnorm
    _unfreeze(
        "always_train", ((_MODE_BACK, "layer.train(True)"),),
        "Every layer goes to training mode: one that was in eval mode before the freeze goes back to eval.",
        UNDOING, "layer.train() as the opposite of layer.eval()",
    ),
    _unfreeze(
        "mode_of_the_model", ((_MODE_BACK, "layer.train(model.training)"),),
        "The layers take the mode that the model has now: theirs from before the freeze is asked for.",
        UNDOING, "module.train(model.training)",
    ),
    _unfreeze(
        "mode_forgotten", ((_MODE_BACK, "pass"),),
        "The layers are left in eval mode until the model changes modes: give them the mode they had.",
        UNDOING, "deleting the override and nothing else",
    ),
    _unfreeze(
        "still_frozen", ((_FORGET, "del layer.frozen_from"),),
        "What kept the layers in eval mode is still there: they do not follow the model into training mode.",
        UNDOING, "forgetting what was overridden",
    ),
    _unfreeze(
        "all_trainable", ((_WANTED_BACK, "parameter.requires_grad = True"),),
        "Every gamma and beta is trained now, also one that was not before the freeze.",
        UNDOING, "requires_grad = True as the opposite of False",
    ),
    _unfreeze(
        "never_trainable", ((_WANTED_BACK, "pass"),),
        "The modes come back, but gamma and beta stay stopped: give them their requires_grad back.",
        UNDOING, "undoing half of it",
    ),
    _unfreeze(
        "gammas_for_both",
        ((
            _REMEMBER,
            "layer.frozen_from = layer.training, dict.fromkeys(wanted, next(iter(wanted.values()), None))",
        ),),
        "beta got gamma's requires_grad back: each of the two has one of its own.",
        UNDOING, "one saved flag for a layer, bn.weight.requires_grad",
    ),
    _unfreeze(
        "remembered_by_name",
        (
            (_FIND, "(named := batchnorm_layers(model, tracked=True)).values()"),
            (
                _REMEMBER,
                "layer.frozen_from = next(name for name, module in named.items() if module is layer)\n"
                "            vars(freeze_batchnorm)[layer.frozen_from] = layer.training, wanted",
            ),
            (_RECALL, "training, wanted = vars(freeze_batchnorm)[layer.frozen_from]"),
        ),
        "The state is kept outside of the layers, by their names: those of another model have the same.",
        UNDOING, "a dictionary from name to saved state",
    ),
    _unfreeze(
        "remembered_on_parameters",
        (
            (
                _REMEMBER,
                "layer.frozen_from = layer.training, {}\n            for parameter in layer.parameters():\n"
                "                parameter.wanted = parameter.requires_grad",
            ),
            (_WANTED_BACK, "parameter.requires_grad = getattr(parameter, 'wanted', True)"),
        ),
        "requires_grad was remembered on the parameters: a deep copy makes new ones, without such attributes.",
        UNDOING, "an attribute set on a parameter",
    ),
    _unfreeze(
        "momentum_left_at_zero", ((_OVERRIDE, f"{_OVERRIDE}\n        layer.momentum = 0.0"),),
        "The momentum is still 0: the layers are in training mode again, and their statistics do not move.",
        UNDOING, "momentum = 0 as one more way to freeze, and no way back",
    ),
    _unfreeze(
        "default_momentum",
        (
            (_OVERRIDE, f"{_OVERRIDE}\n        layer.momentum = 0.0"),
            (_MODE_BACK, f"{_MODE_BACK}\n            layer.momentum = 0.1"),
        ),
        "The momentum is 0.1 now, whatever it was before: every layer gets its own back.",
        UNDOING, "momentum = 0 as one more way to freeze, and the default as its opposite",
    ),
    _unfreeze(
        "second_freeze_remembered", ((_FIRST_TIME, "if True:"),),
        "A second freeze remembers the frozen state: what counts is how the layer was before the first.",
        UNDOING, "saving the state at every call",
    ),
    _unfreeze(
        "only_once", ((_IF_FROZEN, "if True:"),),
        "Unfreezing layers that are not frozen fails: twice should be the same as once.",
        UNDOING, "reading a saved attribute without asking whether it is there",
    ),
    _unfreeze(
        "saved_state_kept", ((_FORGET, "vars(layer).pop('train', None)"),),
        "The saved state is still there after unfreezing, and a second call restores it once more.",
        UNDOING, "answers that never delete what they saved",
    ),
    _unfreeze(
        "first_freeze_for_good", ((_IF_FROZEN, 'if "train" in vars(layer):'), (_FORGET, "del layer.train")),
        "What was saved by the first freeze is restored after a later one too: forget it once it has been used.",
        UNDOING, "saving where nothing is saved yet, and never deleting it",
    ),
    _unfreeze(
        "one_two_three", ((_FIND_FROZEN, _OF_RANKS),),
        "Some kinds of BatchNorm do not get their mode back: not every kind is a BatchNorm1d, 2d or 3d.",
        FINDING, "isinstance(m, (BatchNorm1d, BatchNorm2d, BatchNorm3d))",
    ),
    _unfreeze(
        "never_frozen",
        ((_OVERRIDE, "pass"), (_MODE, "\n"), (_FORGET, "del layer.frozen_from"), (_MODE_BACK, "pass")),
        "The freeze stops gamma and beta and leaves the mode alone: nothing was frozen that could come back.",
        GRADIENTS_OFF, "a pair of functions around requires_grad",
    ),
    _unfreeze(
        "frozen_once",
        ((_OVERRIDE, "pass"), (_MODE, "        layer.eval()\n"), (_FORGET, "del layer.frozen_from")),
        "The freeze is undone by the model's next change of modes, long before anybody unfreezes.",
        EVAL_ONLY, "a pair of functions around eval() and train()",
    ),
    _unfreeze(
        "torch_only", ((_FIND, _OF_TORCH), (_FIND_FROZEN, _OF_TORCH)),
        "The course's own BatchNorm is not found: it derives from no layer of PyTorch's.",
        FINDING, "isinstance(m, _BatchNorm), twice",
    ),
    _unfreeze(
        "a_copy", ((_FIND_FROZEN, "batchnorm_layers(model := copy.deepcopy(model)).values()"),),
        "A copy is unfrozen and returned: the model that was given stays frozen.",
        UNDOING, "copying first, out of caution",
    ),
    _unfreeze(
        "remembered_elsewhere",
        (
            (_FIRST_TIME, "before = vars(freeze_batchnorm)\n        if id(layer) not in before:"),
            (_REMEMBER, "before[id(layer)] = layer.training, wanted"),
            (_IF_FROZEN, "before = vars(freeze_batchnorm)\n        if id(layer) in before:"),
            (_RECALL, "training, wanted = before.pop(id(layer))"),
            (_FORGET, "del layer.train"),
        ),
        "The state is kept outside of the layers: a copy of the frozen model has none to go back to.",
        UNDOING, "a dictionary from layer to saved state",
    ),
    _unfreeze(
        "bound_to_the_original",
        ((_OVERRIDE, _BOUND),),
        "A copy's override still works on the original: training the copy puts layers of the original into eval mode.",
        OVERRIDE, "a lambda or inner function set as the layer's train",
    ),
    # --- recalibrate
    _recalibrate(
        "one_pass",
        (
            (_EACH, f"found = []\n            {_EACH}"),
            (_SET_MEAN, "found.append((layer, mean, m2 / (n - 1)))"),
            (
                _SET_VAR,
                "for done, mean, var in found if layer is order[-1] else ():\n"
                "                    done.running_mean.copy_(mean)\n"
                "                    done.running_var.copy_(var)",
            ),
        ),
        "All layers were measured in one go: later ones saw what earlier ones made with their old statistics.",
        ONE_PASS, "hooks on all layers and one pass over the data",
    ),
    _recalibrate(
        "update_bn", _update_bn,
        "This looks like one pass in training mode with an average over batches: it depends on how the data are split.",
        ONE_PASS, "reset, momentum = None, model.train(), one pass: the recipe of weight averaging",
    ),
    _recalibrate(
        "training_mode", ((_EVAL, "pass"),),
        "The model ran in the mode it was in: in training mode a layer normalises with the batch, and counts it.",
        LAYERWISE, "forgetting eval() before collecting",
    ),
    _recalibrate(
        "dropout_active", ((_EVAL, "module.training &= not is_batchnorm(module)"),),
        "Only the BatchNorm layers were in eval mode: dropout and all the rest have to be as well.",
        AS_BEFORE, "bn.eval() for every layer, the model left in training mode",
    ),
    _recalibrate(
        "biased_variance", ((_SET_VAR, "layer.running_var.copy_(m2 / n)"),),
        "This is the biased variance, divided by n: PyTorch keeps the unbiased one in running_var.",
        COUNTED, "var(correction=0), as in the forward pass",
    ),
    _recalibrate(
        "batches_averaged",
        (
            (_START, "n, mean, m2, k = 0, 0.0, 0.0, 0"),
            ("nonlocal n, mean, m2", "nonlocal n, mean, m2, k\n                    k += 1"),
            (_TO_MEAN, "mean = mean + delta / k"),
            (_M2, "m2 = m2 + (own / count - m2) / k"),
            (_SET_VAR, "layer.running_var.copy_(m2)"),
        ),
        "Statistics of batches were averaged: a small batch counts like a large one, and what is between them is lost.",
        COUNTED, "torch.stack(means).mean(0) and the same for the variances",
    ),
    _recalibrate(
        "within_only", ((_M2, "m2 = m2 + own"),),
        "The variance holds only what is inside the batches: add how far their means are apart.",
        COUNTED, "pooled variances",
    ),
    _recalibrate(
        "last_batch",
        ((_TO_MEAN, "mean = rows.mean(dim=1)"), (_M2, "m2 = own"), (_COUNT, "n = max(count, 2)")),
        "These are the statistics of the last batch: all of them count.",
        COUNTED, "momentum = 1 and a pass over the data; a variable overwritten in the loop",
    ),
    _recalibrate(
        "moved_by_momentum",
        (
            (_SET_MEAN, "layer.running_mean.lerp_(mean.to(layer.running_mean), 0.1)"),
            (_SET_VAR, "layer.running_var.lerp_((m2 / (n - 1)).to(layer.running_var), 0.1)"),
        ),
        "The old statistics are only moved towards the new ones: replace them.",
        LAYERWISE, "the update of the training pass",
    ),
    _recalibrate(
        "of_the_output",
        (
            ("def call(layer, args, kwargs):", "def call(layer, args, kwargs, output):"),
            ("hooks[layer](*args, *kwargs.values())", "hooks[layer](output)"),
            ("register_forward_pre_hook(call", "register_forward_hook(call"),
        ),
        "These are statistics of what the layer puts out: its input is what it has to normalise.",
        LAYERWISE, "a forward hook, whose third argument is the output",
    ),
    _recalibrate(
        "definition_order", ((_EACH, "for layer in layers.values():"),),
        "The layers were taken in the order in which the model defines them: take them as they are called.",
        ORDER, "a loop over named_modules()",
    ),
    _recalibrate(
        "one_two_three", ((_LAYERS, f"layers = dict(enumerate({_OF_RANKS}))"),),
        "Some kinds of BatchNorm keep their old statistics: not every kind is a BatchNorm1d, 2d or 3d.",
        FINDING, "isinstance(m, (BatchNorm1d, BatchNorm2d, BatchNorm3d))",
    ),
    _recalibrate(
        "torch_only", ((_LAYERS, f"layers = dict(enumerate({_OF_TORCH}))"),),
        "The course's own BatchNorm keeps its old statistics: it derives from no layer of PyTorch's.",
        FINDING, "isinstance(m, _BatchNorm)",
    ),
    _recalibrate(
        "eval_layers_left_out", ((_EACH, "for layer in [layer for layer in order if dict(modes)[layer]]:"),),
        "Layers that were in eval mode kept their old statistics: recalibration is asked for explicitly, of all.",
        LAYERWISE, "if m.training, taken over from bn update utilities",
    ),
    _recalibrate(
        "untrained_layers_left_out",
        ((
            _EACH,
            "for layer in [layer for layer in order if layer.weight is None or layer.weight.requires_grad]:",
        ),),
        "Layers whose gamma is not trained kept their old statistics: freezing stops training, not this call.",
        LAYERWISE, "requires_grad, taken for a mark of what is frozen",
    ),
    _recalibrate(
        "frozen_layers_left_out",
        ((
            _EACH,
            "for layer in [m for m in order if dict(modes)[m] or all(p.requires_grad for p in m.parameters())]:",
        ),),
        "Layers in eval mode with nothing to train kept their old statistics: freezing stops training, not this call.",
        LAYERWISE, "a test for frozen layers, to leave them as they are",
    ),
    _recalibrate(
        "new_buffers",
        (
            (_SET_MEAN, "layer.running_mean = mean.to(layer.running_mean)"),
            (_SET_VAR, "layer.running_var = (m2 / (n - 1)).to(layer.running_var)"),
        ),
        "The layers have got new buffers: write into those that they have, which others may hold, too.",
        AS_BEFORE, "bn.running_mean = mean",
    ),
    _recalibrate(
        "float64_buffers",
        ((_SET_MEAN, "layer.running_mean = mean"), (_SET_VAR, "layer.running_var = m2 / (n - 1)")),
        "The buffers are in float64 now: what is computed in it is written into those that the layers have.",
        AS_BEFORE, "bn.running_mean = mean, after sums in float64",
    ),
    _recalibrate(
        "affine_reset",
        ((
            _EACH,
            f"{_EACH}\n                if layer.weight is not None:\n"
            "                    layer.weight.fill_(1), layer.bias.fill_(0)",
        ),),
        "gamma and beta were reset with the statistics: what was learned stays.",
        AS_BEFORE, "reset_parameters() where reset_running_stats() is meant",
    ),
    _recalibrate(
        "counter_reset",
        ((_RETURN, "    for layer in layers.values():\n        layer.num_batches_tracked.zero_()\n    return model"),),
        "The counters of batches were set to zero: they stay as they were.",
        AS_BEFORE, "reset_running_stats(), which resets the counter too",
    ),
    _recalibrate(
        "momentum_changed",
        ((_RETURN, "    for layer in layers.values():\n        layer.momentum = None\n    return model"),),
        "The momentum is another one afterwards: put every layer's own back.",
        AS_BEFORE, "momentum = None for averaging, never restored",
    ),
    _recalibrate(
        "left_in_eval", ((_MODES_BACK, "pass"),),
        "The model is left in eval mode: every module gets its own mode back.",
        AS_BEFORE, "model.eval() at the beginning",
    ),
    _recalibrate(
        "left_in_train", ((_MODES_BACK, "module.training = True"),),
        "Everything is in training mode afterwards: modules that were in eval mode go back to it.",
        AS_BEFORE, "model.train() at the end",
    ),
    _recalibrate(
        "left_in_eval_after_an_error",
        (("    finally:\n        for module, training", "    else:\n        for module, training"),),
        "When it refuses a model or the model raises, everything is left in eval mode: modes come back then too.",
        AS_BEFORE, "restoring the modes in the last lines, without try and finally",
    ),
    _recalibrate(
        "with_history", ((_NO_GRAD, "with torch.enable_grad():"),),
        "Statistics with an autograd history went into the buffers: nothing here needs gradients.",
        AS_BEFORE, "a forgotten no_grad",
    ),
    _recalibrate(
        "a_copy", ((_LAYERS, f"model = copy.deepcopy(model)\n    {_LAYERS}"),),
        "A copy was recalibrated: the model that was given keeps its old statistics.",
        AS_BEFORE, "copying first, out of caution",
    ),
    _recalibrate(
        "generator_listed", ((_ONCE_ONLY, "batches = list(batches)\n    if False:"),),
        "A generator is read into memory: refuse it, so that nobody's data set ends there by accident.",
        AGAIN, "list(batches) as the first line",
    ),
    _recalibrate(
        "lists_only", ((_ONCE_ONLY, "if not isinstance(batches, list | tuple):"),),
        "A loader is refused: whatever can be read again and again will do, list or not.",
        AGAIN, "isinstance(batches, list)",
    ),
    _recalibrate(
        "called_twice_accepted", ((_CALLED, "if False:"),),
        "A layer that is called twice in a pass is accepted: no statistics are right for both calls.",
        ORDER, "hooks that never count",
    ),
    _recalibrate(
        "refused_halfway",
        ((_CALLED, "if called.count(layer) > 1 and len(hooks) == 1:"), (_RESTORE, "for buffer, value in ():")),
        "A layer that is called twice is refused when it is its turn, and those before it have changed already.",
        ORDER, "calls that are counted layer by layer",
    ),
    _recalibrate(
        "two_places_only",
        ((_CALLED, "if list(dict(model.named_modules(remove_duplicate=False)).values()).count(layer) > 1:"),),
        "A forward that calls one layer twice goes unnoticed: count the calls, not the names.",
        ORDER, "looking for duplicates in named_modules()",
    ),
    _recalibrate(
        "one_pass_variance",
        (
            (_ROWS, "rows = x.movedim(1, 0).flatten(1)"),
            (_M2, "m2 = m2 + rows.square().sum(dim=1)"),
            (_SET_VAR, "layer.running_var.copy_((m2 - n * mean.square()) / (n - 1))"),
        ),
        "Sums of squares minus the square of the sum: at a large mean the difference is all rounding.",
        COUNTED, "accumulating x and x² in float32",
    ),
    # --- GhostBatchNorm
    _ghost(
        "whole_batch", ((_PARTS, "[x]"),),
        "The batch is normalised as a whole: every virtual batch has its own statistics.",
        GHOST, "an argument that is stored and not used",
    ),
    _ghost(
        "equal_parts", ((_PARTS, "x.chunk(max(1, len(x) // self.virtual_batch_size))"),),
        "The batch is cut into equal parts: each has virtual_batch_size samples, and the last takes what is left.",
        SPLIT, "x.chunk, in TabNet's ghost batch norm",
    ),
    _ghost(
        "number_of_parts", ((_PARTS, "x.chunk(self.virtual_batch_size)"),),
        "virtual_batch_size is taken for the number of parts: it is the number of samples in one.",
        SPLIT, "num_splits of other implementations",
    ),
    _ghost(
        "interleaved",
        ((
            _GHOSTS,
            "y, k = torch.empty_like(x), -(-len(x) // self.virtual_batch_size)\n"
            "        for i in range(k):\n            y[i::k] = normalise(x[i::k])\n        return y",
        ),),
        "Samples are dealt out one by one: a virtual batch is a run of samples that stand next to each other.",
        SPLIT, "a view to (N / k, k · C, H, W), as in fast CIFAR-10 code",
    ),
    _ghost(
        "rest_joined",
        ((
            _GHOSTS,
            f"parts = list({_PARTS})\n"
            "        if len(parts) > 1 and len(parts[-1]) < self.virtual_batch_size:\n"
            "            parts[-2:] = [torch.cat(parts[-2:])]\n"
            "        return torch.cat([normalise(part) for part in parts])",
        ),),
        "The samples that are left over joined the part before: they are a smaller virtual batch of their own.",
        SPLIT, "avoiding a small last part",
    ),
    _ghost(
        "rest_not_counted",
        ((
            _GHOSTS,
            "whole = len(x), self.virtual_batch_size\n        return torch.cat([normalise(part) if len(part) in whole "
            f"else {_PLAIN.format('part')} for part in {_PARTS}])",
        ),),
        "The smaller last part is normalised, but the running statistics do not hear of it: it is an update as well.",
        UPDATES, "a case of its own for the samples that are left over",
    ),
    _ghost(
        "rest_dropped", ((_PARTS, f"{_PARTS}[: max(1, len(x) // self.virtual_batch_size)]"),),
        "Samples that do not fill a virtual batch are missing from the output.",
        SPLIT, "a loop over N // size parts",
    ),
    _ghost(
        "rest_refused",
        ((_NORMALISE, f"assert len(x) % self.virtual_batch_size == 0, 'does not divide'\n        {_NORMALISE}"),),
        "A batch that virtual_batch_size does not divide is refused: its last part is just smaller.",
        SPLIT, "an assertion, or a view that needs equal parts",
    ),
    _ghost(
        "written_into_the_input",
        ((_GHOSTS, f"for part in {_PARTS}:\n            part.copy_(normalise(part.clone()))\n        return x"),),
        "The input was overwritten with the output: whoever gave it may still need it.",
        SPLIT, "x[i:j] = bn(x[i:j]) in a loop",
    ),
    _ghost(
        "untracked_as_a_whole", (("if not self.training:", "if not self.training or self.running_mean is None:"),),
        "Without running statistics the batch is normalised as a whole: in training, virtual batches always are.",
        GHOST, "torch's own condition for taking the batch's statistics, turned round",
    ),
    _ghost(
        "one_update",
        ((_GHOSTS, f"super().forward(x)\n        return torch.cat([{_PLAIN.format('part')} for part in {_PARTS}])"),),
        "The running statistics moved once, towards those of the whole batch: each virtual batch is an update.",
        UPDATES, "statistics of the whole batch, taken for better ones",
    ),
    _ghost(
        "updates_averaged",
        ((
            _GHOSTS,
            f"parts, was, buffers = {_PARTS}, None, (self.running_mean, self.running_var)\n"
            "        if self.running_mean is None:\n"
            "            return torch.cat([normalise(part) for part in parts])\n"
            "        was, ends, y = [b.clone() for b in buffers], [], []\n"
            "        for part in parts:\n"
            "            [b.copy_(w) for b, w in zip(buffers, was)]\n"
            "            y.append(normalise(part))\n"
            "            ends.append([b.clone() for b in buffers])\n"
            "        [b.copy_(torch.stack(e).mean(0)) for b, e in zip(buffers, zip(*ends))]\n"
            "        return torch.cat(y)",
        ),),
        "All virtual batches updated the same old statistics, and the results were averaged: go one after the other.",
        UPDATES, "repeated buffers whose mean is taken afterwards, as in fast CIFAR-10 code",
    ),
    _ghost(
        "last_update_only",
        ((
            _GHOSTS,
            f"parts = {_PARTS}\n        return torch.cat([{_PLAIN.format('part')} for part in parts[:-1]]"
            " + [normalise(parts[-1])])",
        ),),
        "Only the last virtual batch moved the running statistics: each of them does.",
        UPDATES, "an update that slipped out of the loop",
    ),
    _ghost(
        "no_update",
        ((_GHOSTS, f"return torch.cat([{_PLAIN.format('part')} for part in {_PARTS}])"),),
        "The running statistics do not move: every virtual batch updates them.",
        UPDATES, "functional batch_norm without buffers",
    ),
    _ghost(
        "reversed_updates",
        ((_GHOSTS, f"return torch.cat([normalise(part) for part in reversed({_PARTS})][::-1])"),),
        "The virtual batches updated the running statistics from the last to the first.",
        UPDATES, "recursion from the end",
    ),
    _ghost(
        "momentum_divided",
        ((
            _GHOSTS,
            f"kept, parts = self.momentum, {_PARTS}\n        self.momentum = kept / len(parts)\n"
            "        y = torch.cat([normalise(part) for part in parts])\n"
            "        self.momentum = kept\n        return y",
        ),),
        "The momentum is divided by the number of parts: every virtual batch is a full update.",
        UPDATES, "the wish that a batch should forget as much as one update",
    ),
    _ghost(
        "momentum_of_the_old", ((_SUPER, _SUPER.replace("momentum", "1 - momentum")),),
        "momentum weighs the old value, as in Keras: in PyTorch it is the weight of the new one.",
        UPDATES, "the other convention",
    ),
    _ghost(
        "zero_and_none_taken_for_the_default", ((_SUPER, _SUPER.replace("momentum", "momentum or 0.1")),),
        "A momentum of 0 or None becomes the default: with 0 the statistics stay, with None they average all parts.",
        UPDATES, "momentum or 0.1",
    ),
    _ghost(
        "none_taken_for_the_default",
        ((_SUPER, _SUPER.replace("momentum", "0.1 if momentum is None else momentum")),),
        "A momentum of None becomes the default: with it the statistics average all virtual batches.",
        UPDATES, "a default that is put in for None",
    ),
    _ghost(
        "counted_once",
        ((
            _GHOSTS,
            f"y, counter = torch.cat([normalise(part) for part in {_PARTS}]), self.num_batches_tracked\n"
            f"        if counter is not None:\n            counter -= len({_PARTS}) - 1\n        return y",
        ),),
        "num_batches_tracked counts batches: each virtual batch is an update, and counts.",
        UPDATES, "one more at the beginning of forward, in layers written by hand",
    ),
    _ghost(
        "biased_running_var", _by_hand(running_var="var"),
        "running_var gets the biased variance: it keeps the unbiased one, over n − 1.",
        UPDATES, "one variance for both purposes, in layers written by hand",
    ),
    _ghost(
        "with_history", _by_hand(into_buffer=""),
        "The running statistics carry an autograd history: the graphs of all batches stay in memory behind them.",
        UPDATES, "a forgotten no_grad or detach, in layers written by hand",
    ),
    _ghost(
        "unbiased_normalisation", _by_hand(var="var * (n / (n - 1))"),
        "A virtual batch is divided by its unbiased deviation: normalise with the biased variance.",
        GHOST, "torch.var's default, in layers written by hand",
    ),
    _ghost(
        "constant_statistics", _by_hand(mean="mean.detach()", var="var.detach()"),
        "The gradient takes the statistics for constants: they depend on every sample of their virtual batch.",
        GHOST, "statistics computed under no_grad",
    ),
    _ghost(
        "ghosts_in_eval",
        ((_IN_EVAL, f"return torch.cat([{_PLAIN.format('part')} for part in {_PARTS}])"),),
        "In eval mode virtual batches still normalise themselves: there the running statistics do.",
        GHOST, "a forward without a branch for eval",
    ),
    _ghost(
        "eps_ignored", ((_SUPER, _SUPER.replace("eps", "1e-5")),),
        "The argument eps is not used.",
        GHOST, "arguments that are not handed on",
    ),
    _ghost(
        "affine_ignored", ((_SUPER, _SUPER.replace("affine", "True")),),
        "affine=False is not obeyed: without it there are no gamma and beta.",
        GHOST, "arguments that are not handed on",
    ),
    _ghost(
        "tracking_ignored", ((_SUPER, _SUPER.replace("track_running_stats", "True")),),
        "track_running_stats=False is not obeyed: without running statistics the batch normalises in eval mode too.",
        GHOST, "arguments that are not handed on",
    ),
    _ghost(
        "device_and_dtype_ignored", ((_SUPER, _SUPER.replace(", device, dtype", "")),),
        "The arguments device and dtype are not used.",
        GHOST, "arguments that are not handed on",
    ),
    # --- momentum_for_accumulation
    _momentum(
        "divided", "momentum / micro_batches",
        "The momentum is divided by k: after k updates the shares of the old value multiply, they do not add.",
        MOMENTUM, "the first order of the formula, good enough for small momentum only",
    ),
    _momentum(
        "multiplied", "momentum * micro_batches",
        "The momentum is multiplied by k: more updates need a smaller one.",
        MOMENTUM, "the linear scaling rule of learning rates",
    ),
    _momentum(
        "unchanged", "momentum",
        "The momentum is returned as it came: k updates with it forget more than one.",
        MOMENTUM, "accumulation loops that leave the layers alone",
    ),
    _momentum(
        "root_of_the_new", "momentum ** (1 / micro_batches)",
        "The root is taken of the new value's weight: what multiplies from update to update is the old one's.",
        MOMENTUM, "momentum read as the share that is kept",
    ),
    _momentum(
        "weight_of_the_old", "(1 - momentum) ** (1 / micro_batches)",
        "This is what one update keeps: the momentum is what it takes from the new value.",
        MOMENTUM, "stopping before the last step",
    ),
    _momentum(
        "other_direction", "1 - (1 - momentum) ** micro_batches",
        "This is what k updates forget together: asked for is the momentum of one of them.",
        MOMENTUM, "the formula solved for the wrong letter",
    ),
    _momentum(
        "one_less", "1 - (1 - momentum) ** (1 / (micro_batches + 1))",
        "This is right for one micro-batch more.",
        MOMENTUM, "counting the step itself as an update",
    ),
    _momentum(
        "no_logarithm_of_nothing", "1 - math.exp(math.log(1 - momentum) / micro_batches)",
        "A momentum of 1 fails: nothing is kept, and nothing has no logarithm.",
        MOMENTUM, "the equation solved with logarithms", ("if momentum == 1:", "if False:"),
    ),
    # --- replace_batchnorm
    _replace(
        "one_two_three", ((_TO_REPLACE, _OF_RANKS),),
        "Some kinds of BatchNorm are left: SyncBatchNorm, lazy layers and others are no BatchNorm1d, 2d or 3d.",
        FINDING, "isinstance(m, (BatchNorm1d, BatchNorm2d, BatchNorm3d))",
    ),
    _replace(
        "torch_only", ((_TO_REPLACE, _OF_TORCH),),
        "The course's own BatchNorm is left: it derives from no layer of PyTorch's.",
        FINDING, "isinstance(m, _BatchNorm)",
    ),
    _replace(
        "make_of_the_original", ((_MADE, "make(layer)"),),
        "make was given the input's own layer: what it keeps of it belongs to both models.",
        A_NEW_ONE, "calling make before copying",
    ),
    _replace(
        "root_of_the_original", _root_of_the_original,
        "A model that is itself a BatchNorm was given to make without a copy: what make keeps of it belongs to both.",
        A_NEW_ONE, "a case for the model itself, before the copy",
    ),
    _replace(
        "visited_again", _table_of_layers_only,
        "A block that stands in two places was walked through twice, and what had been put in was replaced again.",
        SHARED, "a table of layers, and none of the blocks",
    ),
    _replace(
        "layer_copied_alone", ((_MADE, "make(copy.deepcopy(layer))"),),
        "A layer was copied apart from its model: what the two have in common, they do not share in the copy.",
        SHARED, "make(copy.deepcopy(bn)), wherever a layer is met",
    ),
    _replace(
        "child_by_child", _child_by_child,
        "Every module was copied by itself: what two places of the input share, they do not share in the copy.",
        SHARED, "rebuilding a model from copies of its children",
    ),
    _replace(
        "made_anew", _walk(),
        "A layer that stands in several places became several layers: make one, and use it everywhere.",
        SHARED, "a recursive walk that calls make wherever it meets a layer",
    ),
    _replace(
        "second_name_left", _walk(children=lambda module: list(module.named_children())),
        "A layer under a second name was left: lists of children and modules name each one only once.",
        SHARED, "a walk over named_children()",
    ),
    _replace(
        "none_walked_into", _none_walked_into,
        "A child that was set to None is taken for a module: its name is still there, and nothing behind it.",
        REPLACING, "a walk over module._modules",
    ),
    _replace(
        "on_top", _walk(deep=False),
        "Only the model's own children are replaced: blocks inside it keep their layers.",
        REPLACING, "a loop over named_children() without recursion",
    ),
    _replace(
        "root_left", _walk(root=False),
        "A model that is itself a BatchNorm is not replaced.",
        REPLACING, "a walk over children only",
    ),
    _replace(
        "in_place", _walk(start=lambda model: model),
        "The input itself was changed: replace layers in a copy.",
        A_NEW_ONE, "most recipes, which work in place",
    ),
    _replace(
        "shallow_copy", _walk(start=copy.copy),
        "The copy is shallow: it shares its modules with the input, which was changed with it.",
        A_NEW_ONE, "copy.copy(model)",
    ),
    _replace(
        "the_new_replaced_too", _walk_into_the_new,
        "The walk went on inside what was just put in, and replaced the layer in there again, and again.",
        REPLACING, "descending after the replacement, or a loop over modules() that changes meanwhile",
    ),
    _replace(
        "dotted_names", _set_by_dotted_name,
        "A name with dots was set on the model itself: the layer belongs to its parent, which has to be found.",
        REPLACING, "setattr(model, name, …) with names from named_modules()",
    ),
    # --- weight_decay_groups
    _groups(
        "batchnorm_only", ((_NORMS, "()"),),
        "Other norms decay: layer, group, RMS and instance normalisation are spared as well.",
        DECAY, "a check for BatchNorm alone",
    ),
    _groups(
        "instance_norm_decays", ((_NORMS, "(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)"),),
        "InstanceNorm's weight decays: it is no BatchNorm, and a norm all the same.",
        DECAY, "lists of norms from memory",
    ),
    _groups(
        "norms_decay", ((_OF_NORMS, "set()"),),
        "The weights of norms decay: only biases were spared.",
        DECAY, "if not name.endswith('bias')",
    ),
    _groups(
        "by_name", ((_OF_NORMS, '{id(p) for n, p in model.named_parameters() if "bn" in n or "norm" in n.lower()}'),),
        "Norms were looked for by their names in the model: ask what kind of module a parameter belongs to.",
        DECAY, 'no_decay = ["bias", "LayerNorm.weight"], from language-model recipes',
    ),
    _groups(
        "by_axes", ((_OF_NORMS, "{id(p) for p in model.parameters() if p.dim() < 2}"),),
        "The number of axes decided: a norm's weight may have two, and a weight that is no norm's only one.",
        DECAY, "p.ndim <= 1, in training scripts for transformers and ResNets",
    ),
    _groups(
        "axes_alone", ((_OF_NORMS, "{id(p) for p in model.parameters() if p.dim() < 2}"), (_IS_BIAS, "if False:")),
        "The number of axes alone decided: a norm or a bias may have two, and a weight that is neither only one.",
        DECAY, "p.dim() >= 2 decays, in training scripts for language models",
    ),
    _groups(
        "biases_decay", ((_IS_BIAS, "if False:"),),
        "Biases decay: they are spared as well.",
        DECAY, "sparing the norms only",
    ),
    _groups(
        "bias_by_ending", ((_IS_BIAS, 'if name.endswith("bias"):'),),
        "Some biases decay: those of recurrent layers have names that do not end so.",
        DECAY, "name.endswith('bias')",
    ),
    _groups(
        "bias_by_beginning", ((_IS_BIAS, 'if name.rpartition(".")[2].startswith("bias"):'),),
        "Some biases decay: that of an attention layer has a name that does not begin so.",
        DECAY, "name.startswith('bias')",
    ),
    _groups(
        "bias_in_a_layers_name", ((_IS_BIAS, 'if "bias" in name:'),),
        "A weight is spared because the layer around it has bias in its name: the parameter's own name counts.",
        DECAY, "'bias' in name, of the whole path",
    ),
    _groups(
        "embeddings_spared",
        ((_OF_NORMS, _OF_NORMS.replace("isinstance(m, norms)", "isinstance(m, (*norms, nn.Embedding))")),),
        "Embeddings were spared: they are neither norms nor biases.",
        DECAY, "a blacklist of LayerNorm and Embedding, in training scripts for language models",
    ),
    _groups(
        "known_layers_only",
        ((
            _DECAYING,
            "[p for p in trainable if id(p) not in spared and id(p) in {id(q) for m in model.modules()"
            " if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for q in m.parameters()}]",
        ),),
        "Some parameters are in neither group: what is no convolution and no linear layer is trained too.",
        ONCE, "a loop over modules with a case for each known kind",
    ),
    _groups(
        "order_swapped", ((_FIRST, _SECOND.replace("0.0", "0")), (_SECOND, _FIRST)),
        "The groups have changed places: the one that decays comes first.",
        DECAY, "no_decay first",
    ),
    _groups(
        "empty_group_left_out", _without_empty_groups,
        "A group without parameters was left out: there are always two, so that the caller can tell them apart.",
        DECAY, "if params: before a group is added",
    ),
    _groups(
        "frozen_included", ((_TRAINABLE, "list(model.parameters())"),),
        "Parameters that are not trained are in the groups.",
        ONCE, "model.parameters() without asking for requires_grad",
    ),
    _groups(
        "listed_twice",
        ((_TRAINABLE, "[p for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]"),),
        "A parameter that is shared is listed twice: each one belongs in once.",
        ONCE, "named_parameters(remove_duplicate=False)",
    ),
    _groups(
        "tied_weight_twice",
        ((_TRAINABLE, "[p for m in model.modules() for p in m.parameters(recurse=False) if p.requires_grad]"),),
        "A tied weight is listed once for each module that has it: each parameter belongs in once.",
        ONCE, "collecting parameters module by module",
    ),
    _groups(
        "last_use_decides",
        ((
            _OF_NORMS,
            "set()\n    for m in model.modules():\n        for p in m.parameters(recurse=False):\n"
            "            spared.discard(id(p))\n            if is_batchnorm(m) or isinstance(m, norms):\n"
            "                spared.add(id(p))",
        ),),
        "The last use of a shared parameter decided: it is spared if one of its uses is.",
        ONCE, "a dictionary from parameter to group, written in a loop over modules",
    ),
    _groups(
        "sorted_by_name",
        ((_TRAINABLE, "[p for _, p in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)]"),),
        "The parameters are sorted by name: they come in the model's order, which an optimizer's saved state goes by.",
        ONCE, "sorted sets of names, in training scripts for language models",
    ),
    _groups(
        "both_decay", ((_SECOND, _SECOND.replace("0.0", "weight_decay")),),
        "The second group has the weight decay of the first: its own is 0.",
        DECAY, "a copied line",
    ),
    _groups(
        "no_decay_left_out", ((_SECOND, _SECOND.replace(', "weight_decay": 0.0', "")),),
        "The second group does not say its weight decay: the optimizer's default comes in.",
        DECAY, "leaving out what looks like a default",
    ),
]
# fmt: on
