"""Problem set 5: what is asked of `convert_sync_batchnorm`."""

import copy

import torch.distributed as dist
from torch import nn

from course_lib.checks.finetuning_inputs import course_layer
from course_lib.checks.piece import Piece, WrongReturn
from course_lib.checks.sync_ranks import by_rank, on_ranks
from course_lib.sync import SyncBatchNorm, groups_of

__all__ = ["convert"]

convert = Piece("sync.convert_sync_batchnorm", call="convert_sync_batchnorm(model, group=None) → model")

# Every scenario about what a layer keeps looks at layers next to each other, at one that lies deeper, and at one that
# is the whole model. Whether they were converted at all is asked elsewhere.


class _Branch(nn.Module):
    """A module that keeps its layers as attributes."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))


def _converted(impl, model, *args, **group):
    result = impl(model, *args, **group)
    if not isinstance(result, nn.Module):
        none = ": is there a return?" if result is None else ""
        raise WrongReturn(f"expected the model to be returned, got {type(result).__name__}{none}")
    return result


def _kind(module):
    """A layer's class, by name: the grader's reference lives in a second copy of `course_lib.sync`."""
    cls = type(module)
    if cls.__name__ == "SyncBatchNorm" and cls.__module__.endswith("sync"):
        return "course_lib.sync.SyncBatchNorm"
    return f"torch.nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.") else cls.__name__


def _model(case):
    """A linear layer and BatchNorm layers with settings of their own, one deeper than the others."""
    c = case.integer(2, 4)
    return nn.Sequential(
        case.fill(nn.Linear(c, c)),
        case.fill(nn.BatchNorm1d(c, eps=case.number("eps", 0.1, 1), momentum=case.number("momentum", 0.2, 0.9))),
        case.fill(nn.BatchNorm2d(c, momentum=None)),
        case.fill(nn.BatchNorm3d(c, affine=False)),
        nn.Sequential(_alone(case)),
        case.fill(nn.BatchNorm1d(c, track_running_stats=False)),
    )


def _alone(case):
    """A BatchNorm layer with settings of its own."""
    settings = {"eps": case.number("eps", 0.1, 1), "momentum": case.number("momentum", 0.2, 0.9)}
    return case.fill(nn.BatchNorm2d(case.integer(2, 4), **settings))


def _norms(model):
    """{words: layer} of the BatchNorm layers of `_model` or `_alone`, whether they have been converted or not."""
    if not isinstance(model, nn.Sequential):
        return {"a layer as the model": model}
    return {f"layer {name}": layer for name, layer in model.named_modules() if hasattr(layer, "num_features")}


def _linear(model):
    """Weights that no conversion is about."""
    return {"weight of the linear layer": model[0].weight}


replaced = convert.group("every BatchNorm layer of a nested model, and no other layer", points=0.75)


@replaced.scenario()
def layers_of_a_nested_model(impl, case):
    c = case.integer(2, 4)
    instance = nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
    others = nn.Sequential(instance, nn.GroupNorm(1, c), nn.LayerNorm(c))
    bare = nn.BatchNorm2d(c, affine=False), nn.BatchNorm1d(c, track_running_stats=False), nn.BatchNorm2d(c).eval()
    volumes = nn.ModuleDict({"deep": nn.ModuleList([nn.BatchNorm3d(c), nn.Identity()]), "bare": nn.Sequential(*bare)})
    further = nn.Sequential(nn.SyncBatchNorm(c), course_layer(c), SyncBatchNorm(c))
    shared = nn.BatchNorm2d(c)
    twice = nn.Sequential(shared, nn.ReLU(), shared), nn.ModuleDict({"again": shared})
    model = nn.Sequential(nn.Linear(c, c), nn.BatchNorm1d(c), _Branch(c), others, volumes, further, *twice)
    case.fill(model)
    before = dict(model.named_modules())
    after = _converted(impl, model)
    modules = dict(after.named_modules())
    kinds = {f"layer {name}": _kind(layer) for name, layer in modules.items() if not list(layer.children())}
    returned = "the model itself" if after is model else "another model"
    same = [name for name, module in before.items() if not hasattr(module, "running_mean") or "3." in name]
    exchanged = ", ".join(name for name in same if modules.get(name) is not before[name])
    # A module names each of its layers once, wherever they stand.
    places = {name: after.get_submodule(name) for name in ("6.0", "6.2", "7.again")}
    kinds |= {f"layer {name}": _kind(layer) for name, layer in places.items()}
    one = len(set(places.values())) == 1
    return {
        "returned": returned,
        **kinds,
        "shared layer still one": one,
        "others exchanged": exchanged,
        **_linear(after),
    }


root = convert.group("a model that is itself a BatchNorm layer", points=0.5)


@root.scenario()
def layer_as_model(impl, case):
    seen = {}
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        after = _converted(impl, case.fill(kind(case.integer(2, 4))))
        seen[f"returned for {kind.__name__}"] = _kind(after)
        seen[f"weight of {kind.__name__}"] = getattr(after, "weight", None)
    return seen


kept = convert.group("weights, running statistics and settings kept", points=0.75)


@kept.scenario()
def state_of_layers(impl, case):
    seen = {}
    for title, model in {"": _model(case), " of a layer as the model": _alone(case)}.items():
        for layer in _norms(model).values():
            if layer.track_running_stats:
                layer.num_batches_tracked.fill_(case.integer(3, 9))
        state = _converted(impl, model).state_dict()
        seen["names in the state_dict" + title] = ", ".join(state)
        seen.update((name + title, value) for name, value in state.items())
    return seen


@kept.scenario()
def settings_of_layers(impl, case):
    model, alone = _model(case), _alone(case)
    c = model[0].out_features
    model.append(nn.BatchNorm1d(c, affine=False, track_running_stats=False))
    after = _converted(impl, model)
    norms = {**_norms(after), **_norms(_converted(impl, alone))}
    settings = {
        f"{name} of {words}": getattr(layer, name, "missing")
        for words, layer in norms.items()
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats")
    }
    return {**settings, "names in the state_dict": ", ".join(after.state_dict()), **_linear(after)}


@kept.scenario()
def layers_on_another_device(impl, case):
    # meta has shapes and no values, and everything that stays somewhere else shows.
    state = _converted(impl, _model(case).to("meta")).state_dict()
    return {f"where {name} lives": value.device.type for name, value in state.items()}


modes = convert.group("mode and requires_grad kept", points=0.25)


@modes.scenario()
def modes_of_layers(impl, case):
    # Every other module in the other mode, and then the other way round.
    seen = {}
    for mode in (True, False):
        model, alone = _model(case), _alone(case).train(mode)
        for i, module in enumerate(model.modules()):
            module.training = mode ^ bool(i % 2)
        after = _converted(impl, model)
        modes = {f"training of {name or 'the model'}": module.training for name, module in after.named_modules()}
        modes["training of a layer as the model"] = _converted(impl, alone).training
        title = "" if mode else ", the other way round"
        seen.update((name + title, training) for name, training in modes.items())
    return {**seen, **_linear(after)}


@modes.scenario()
def frozen_parameters(impl, case):
    model, alone = _model(case), _alone(case)
    for parameter in (model[0].weight, model[1].weight, model[2].bias, model[4][0].weight, alone.weight):
        parameter.requires_grad_(False)
    after = _converted(impl, model)
    learns = {f"requires_grad of {name}": parameter.requires_grad for name, parameter in after.named_parameters()}
    for name, parameter in _converted(impl, alone).named_parameters():
        learns[f"requires_grad of the {name} of a layer as the model"] = parameter.requires_grad
    return {**learns, **_linear(after)}


grouped = convert.group("the given group in every layer", points=0.25)


@grouped.scenario()
def group_of_layers(impl, case):
    model, alone = _model(case), _alone(case)

    def step(rank):
        group = groups_of(2)
        mine = copy.deepcopy(model).append(SyncBatchNorm(1, process_group=dist.group.WORLD))
        after = _converted(impl, mine, group)
        norms = {**_norms(after), **_norms(_converted(impl, copy.deepcopy(alone), group=group))}
        return {**_groups(norms, group), **_linear(after)}

    return by_rank(on_ranks(step, 4))


@grouped.scenario()
def no_group_of_layers(impl, case):
    model = _model(case).append(SyncBatchNorm(1, process_group="some of the ranks"))
    after = _converted(impl, model)
    return {**_groups(_norms(after), None), **_linear(after)}


def _groups(norms, given):
    """Which group each layer has. One that was not converted has none that could be wrong."""
    return {
        f"group of {words}": _group(getattr(layer, "process_group", given), given) for words, layer in norms.items()
    }


def _group(group, given):
    return "the given one" if group is given else "None: all ranks" if group is None else "another one"
