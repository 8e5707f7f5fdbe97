"""Freezing, recalibrating, ghost batches, replacing layers, weight decay: each promise against a closed form."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from course_lib.finetuning import (
    Always,
    FrozenBatchNorm,
    GhostBatchNorm,
    batchnorm_layers,
    freeze_batchnorm,
    momentum_for_accumulation,
    recalibrate,
    replace_batchnorm,
    unfreeze_batchnorm,
    weight_decay_groups,
)
from course_lib.running_stats import BatchNorm
from tests.devices import DEVICES

on_devices = pytest.mark.parametrize("device", DEVICES)
LAYERS = {
    "1d": lambda: nn.BatchNorm1d(4),
    "2d": lambda: nn.BatchNorm2d(4),
    "3d": lambda: nn.BatchNorm3d(4),
    "sync": lambda: nn.SyncBatchNorm(4),
    "lazy": lambda: nn.LazyBatchNorm2d(),
    "course": lambda: BatchNorm(4),
    "ghost": lambda: GhostBatchNorm(4, 2),
}


def drawn(*shape, seed=0, device="cpu", dtype=torch.float32):
    """Normal values of mean 1 and deviation 2."""
    return (1 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(device, dtype)


def net(device="cpu", dtype=torch.float32):
    """Three BatchNorms, the second behind the first; weights and statistics all different."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(),
        nn.Linear(20, 6), nn.BatchNorm1d(6),
    )  # fmt: skip
    for layer in batchnorm_layers(model).values():
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias, -1, 1)
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.to(device, dtype)


def images(n=12, **kwargs):
    return drawn(n, 3, 6, 6, **kwargs)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- Always, batchnorm_layers -----------------------------------------------------------------------------------


def test_always_ignores_what_it_is_called_with():
    assert Always(max, 1, 5)(7, key=None) == 5


def test_layers_are_listed_once_under_their_first_name():
    bn = nn.BatchNorm1d(2)
    assert batchnorm_layers(nn.Sequential(bn, nn.Sequential(bn))) == {"0": bn}


@pytest.mark.parametrize("f", [batchnorm_layers, freeze_batchnorm, unfreeze_batchnorm])
def test_a_model_without_batchnorm_is_refused(f):
    with pytest.raises(ValueError, match=r"expected a model with BatchNorm layers, got Sequential without any"):
        f(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.InstanceNorm1d(2, track_running_stats=True)))


# --- freeze_batchnorm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_a_frozen_layer_survives_train(kind):
    model = freeze_batchnorm(nn.Sequential(nn.Identity(), LAYERS[kind]())).train()
    assert [module.training for module in model] == [True, False]


@on_devices
def test_frozen_statistics_do_not_move(device):
    model = freeze_batchnorm(net(device)).train()
    before = state(model)
    model(images(device=device))
    assert same_state(model, before)


@on_devices
def test_a_frozen_model_computes_what_eval_computes(device):
    x, model = images(device=device), net(device)
    want = model.eval()(x)
    torch.testing.assert_close(freeze_batchnorm(model).train()(x), want, rtol=0, atol=0)


@pytest.mark.parametrize(("affine", "trained"), [(True, False), (False, True)])
def test_affine_decides_whether_gamma_and_beta_are_trained(affine, trained):
    layer = freeze_batchnorm(net(), affine=affine)[1]
    assert [p.requires_grad for p in (layer.weight, layer.bias)] == [trained, trained]


def test_only_batchnorm_is_frozen():
    model = freeze_batchnorm(net()).train()
    assert [module.training for module in model] == [True, False, True, True, False, True, True, False]
    assert all(p.requires_grad for i in (0, 3, 6) for p in model[i].parameters())


def test_freezing_returns_the_same_model_and_keeps_its_keys():
    model = net()
    keys = list(model.state_dict())
    assert freeze_batchnorm(model) is model
    assert list(model.state_dict()) == keys
    assert unfreeze_batchnorm(model) is model


def mixed():
    """A net whose layers have different modes and different parameters to train."""
    model = net()
    model[1].eval()
    model[4].weight.requires_grad = False
    return model


def settings(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_unfreezing_gives_every_layer_its_own_state_back(affine, times):
    model = mixed()
    before = settings(model)
    for _ in range(times):
        freeze_batchnorm(model, affine)
    assert settings(model) != before
    model.train(True)
    for _ in range(times):
        unfreeze_batchnorm(model)
    assert settings(model) == before


def test_an_unfrozen_layer_follows_train_again():
    model = unfreeze_batchnorm(freeze_batchnorm(net()))
    assert not model.eval()[1].training
    assert model.train()[1].training
    assert set(vars(model[1])) == set(vars(net()[1]))


def test_freezing_the_rest_later_adds_gamma_and_beta():
    model = freeze_batchnorm(freeze_batchnorm(mixed(), affine=False), affine=True)
    assert not model[1].weight.requires_grad
    assert settings(unfreeze_batchnorm(model)) == settings(mixed())


def test_a_parameter_that_two_layers_share_is_restored():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    unfreeze_batchnorm(freeze_batchnorm(model))
    assert model[0].weight.requires_grad


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_is_frozen_and_can_be_unfrozen_alone(copied):
    model = freeze_batchnorm(net())
    other = copied(model).train()
    assert not other[1].training and not other[1].weight.requires_grad
    unfreeze_batchnorm(other).train()
    assert other[1].training and other[1].weight.requires_grad
    assert not model.train()[1].training and not model[1].weight.requires_grad


def test_train_of_a_frozen_layer_returns_the_layer():
    model = copy.deepcopy(freeze_batchnorm(net()))
    assert model[1].train(True) is model[1] and model[1].eval() is model[1]


def test_a_frozen_lazy_layer_stays_frozen_when_it_gets_its_channels():
    model = freeze_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))
    model.train()(images())
    assert isinstance(model[0], nn.BatchNorm2d) and not model[0].training and not model[0].weight.requires_grad


def test_a_frozen_model_still_learns_and_passes_gradients():
    model = freeze_batchnorm(net()).train()
    model(images()).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[1].weight.grad is None


def test_the_model_may_be_a_batchnorm_itself():
    assert not freeze_batchnorm(nn.BatchNorm1d(3)).train().training


def test_a_frozen_model_compiles_and_exports():
    model, x = freeze_batchnorm(net()), images()
    want = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)


@pytest.mark.parametrize("f", [freeze_batchnorm, lambda model: recalibrate(model, [images()])])
def test_a_layer_without_running_statistics_is_refused_and_nothing_changes(f):
    model = net()
    model[4] = nn.BatchNorm2d(5, track_running_stats=False)
    with pytest.raises(ValueError, match="expected running statistics in every BatchNorm layer, got none in '4'"):
        f(model)
    assert model[1].training and model[1].weight.requires_grad


# --- recalibrate ------------------------------------------------------------------------------------------------


def closed_form(model, x):
    """Population statistics layer by layer, in float64, on the whole of the data at once."""
    model = copy.deepcopy(model).double().eval()
    x = x.double()
    for module in model:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            axes = [0, *range(2, x.dim())]
            module.running_mean.copy_(x.mean(axes))
            module.running_var.copy_(x.var(axes, correction=1))
        with torch.no_grad():
            x = module(x)
    return {name: buffer for name, buffer in model.named_buffers() if "running" in name}


@on_devices
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("split", [[12], [6, 6], [11, 1], [5, 4, 3], [1] * 12], ids=str)
def test_every_layer_gets_the_population_statistics_whatever_the_split(split, dtype, tolerance, device):
    model, x = net(device, dtype), images(device=device, dtype=dtype)
    want = closed_form(model, x)
    recalibrate(model, x.split(split))
    for name, value in want.items():
        torch.testing.assert_close(model.get_buffer(name).double(), value, rtol=tolerance, atol=tolerance)


def test_the_course_s_own_layers_are_recalibrated():
    model = replace_batchnorm(net(), lambda bn: GhostBatchNorm(bn.num_features, 2))
    x = images()
    want = closed_form(model, x)
    recalibrate(model, x.split(5))
    torch.testing.assert_close(model[4].running_var.double(), want["4.running_var"], rtol=1e-6, atol=1e-6)


def test_statistics_keep_their_digits_when_the_mean_is_large():
    model = nn.Sequential(nn.BatchNorm1d(2))
    x = 1e5 + drawn(64, 2)
    recalibrate(model, x.split(10))
    torch.testing.assert_close(model[0].running_var.double(), x.double().var(0), rtol=1e-6, atol=0)


def test_weights_modes_momentum_and_counters_stay():
    model = mixed()
    before, modes, kept = state(model), settings(model), [model[i].momentum for i in (1, 4, 7)]
    recalibrate(model, images().split(4))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.running_{what}" for i in (1, 4, 7) for what in ("mean", "var")}
    assert settings(model) == modes
    assert [model[i].momentum for i in (1, 4, 7)] == kept


def test_recalibrating_returns_the_same_model_without_hooks_or_history():
    model = net()
    assert recalibrate(model, [images()]) is model
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not model[1].running_mean.requires_grad


def test_dropout_is_off_meanwhile():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    x = drawn(20, 3)
    recalibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
    assert model[0].training


def test_a_frozen_layer_is_recalibrated_and_stays_frozen():
    model, x = freeze_batchnorm(net()), images()
    recalibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))
    assert not model.train()[1].training


def test_layers_are_taken_in_the_order_of_their_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.second(self.first(x))

    model = Backwards()
    recalibrate(model, [drawn(20, 3)])
    # Divided by the root of its own unbiased variance, the input of the second has 1.
    torch.testing.assert_close(model.second.running_var, torch.ones(3), rtol=1e-4, atol=0)


def test_a_layer_that_the_data_do_not_reach_stays():
    model = net()
    model.spare = nn.BatchNorm1d(2)
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    recalibrate(model, [images()])
    assert torch.equal(model.spare.running_var, torch.ones(2))


@pytest.mark.parametrize("pack", [tuple, list])
def test_of_a_batch_with_labels_the_first_part_is_the_input(pack):
    one, other = net(), net()
    recalibrate(one, [pack((part, torch.zeros(len(part)))) for part in images().split(4)])
    recalibrate(other, images().split(4))
    assert same_state(one, other.state_dict())


def test_data_are_read_once_per_layer_and_once_more():
    class Counting(list):
        passes = 0

        def __iter__(self):
            Counting.passes += 1
            return super().__iter__()

    recalibrate(net(), Counting([images()]))
    assert Counting.passes == 4


class Once:
    """Re-iterable to look at, but there is nothing the second time."""

    def __init__(self):
        self.iterator = iter([images()])

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda: (x for x in [images()]), "expected batches that can be read several times, got a generator"),
        (lambda: map(abs, [images()]), "expected batches that can be read several times, got a map"),
        (lambda: images(), "expected batches that can be read several times, got a Tensor"),
        (lambda: [], r"expected the same batches, at least one, in every pass, got \[0\]"),
        (Once, r"expected the same batches, at least one, in every pass, got \[1, 0\]"),
    ],
    ids=["generator", "map", "tensor", "empty", "once"],
)
def test_data_that_cannot_be_read_again_are_refused(batches, message):
    model = net()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        recalibrate(model, batches())
    assert same_state(model, before)


def test_a_layer_that_is_called_twice_is_refused():
    bn = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"called once in a pass, got 2 calls of '0'"):
        recalibrate(nn.Sequential(bn, nn.ReLU(), bn), [drawn(8, 3)])


def test_a_single_value_is_refused():
    with pytest.raises(ValueError, match="expected at least 2 values per channel in all batches together, got 1"):
        recalibrate(nn.Sequential(nn.BatchNorm1d(3)), [drawn(1, 3)])


def test_recalibrating_a_model_without_batchnorm_is_refused():
    with pytest.raises(ValueError, match="without any"):
        recalibrate(nn.Linear(2, 2), [drawn(3, 2)])


class Interrupted(list):
    """Raises in the middle of its third pass, when the first layer has new statistics already."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        for batch in super().__iter__():
            if self.passes == 3:
                raise KeyboardInterrupt
            yield batch


def test_an_exception_leaves_the_model_as_it_was():
    model = mixed()
    before, modes = state(model), settings(model)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, Interrupted([images()]))
    assert same_state(model, before)
    assert settings(model) == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- GhostBatchNorm ---------------------------------------------------------------------------------------------

SHAPES = [(6, 4), (9, 4, 3), (9, 4, 3, 2), (5, 4, 2, 3, 2)]


@on_devices
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ghost_batches_equal_batchnorm_on_each_part_in_order(shape, momentum, device):
    ghost = GhostBatchNorm(4, 4, momentum=momentum, device=device)
    plain = BatchNorm(4, momentum=momentum, device=device)
    x = drawn(*shape, device=device)
    y = ghost(x)
    want = torch.cat([plain(part) for part in x.split(4)])
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ghost.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)


def test_ghost_statistics_are_not_those_of_the_batch():
    x = drawn(8, 4)
    assert not torch.allclose(GhostBatchNorm(4, 4)(x), nn.BatchNorm1d(4)(x), atol=1e-2)


def test_a_virtual_batch_as_large_as_the_batch_is_batchnorm():
    x = drawn(8, 4)
    torch.testing.assert_close(GhostBatchNorm(4, 100)(x), nn.BatchNorm1d(4)(x))


@on_devices
def test_ghost_in_eval_is_batchnorm(device):
    ghost, plain = GhostBatchNorm(4, 2, device=device), nn.BatchNorm2d(4, device=device)
    ghost(drawn(6, 4, 3, 3, device=device))
    plain.load_state_dict(ghost.state_dict())
    x = drawn(5, 4, 2, 2, device=device)
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x), rtol=0, atol=0)


def test_ghost_has_batchnorm_s_state_dict_and_arguments():
    ghost = GhostBatchNorm(4, 2, 1e-3, 0.2, True, True, "meta", torch.float64)
    assert list(ghost.state_dict()) == list(nn.BatchNorm1d(4).state_dict())
    assert (ghost.eps, ghost.momentum, ghost.weight.dtype, ghost.running_var.device.type) == (
        1e-3, 0.2, torch.float64, "meta",
    )  # fmt: skip


def test_ghost_without_affine_and_without_tracking():
    x = drawn(8, 4)
    ghost = GhostBatchNorm(4, 2, affine=False, track_running_stats=False)
    assert list(ghost.state_dict()) == []
    torch.testing.assert_close(ghost(x)[:2], nn.BatchNorm1d(4)(x[:2]))
    torch.testing.assert_close(ghost.eval()(x), nn.BatchNorm1d(4)(x))


def test_ghost_gradients_stay_within_their_part():
    x = drawn(6, 4).requires_grad_()
    (GhostBatchNorm(4, 3)(x)[:3] ** 3).sum().backward()
    assert x.grad[:3].abs().min() > 0
    assert (x.grad[3:] == 0).all()


def test_ghost_keeps_channels_last_and_dtype():
    x = drawn(4, 4, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = GhostBatchNorm(4, 2)(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.bfloat16


def test_ghost_runs_on_meta():
    y = GhostBatchNorm(4, 2, device="meta")(torch.empty(6, 4, 3, device="meta", requires_grad=True))
    y.sum().backward()
    assert y.is_meta


def test_an_empty_batch_changes_nothing():
    ghost = GhostBatchNorm(4, 2)
    before = state(ghost)
    assert ghost(torch.empty(0, 4)).shape == (0, 4)
    assert same_state(ghost, before)


@pytest.mark.parametrize(("n", "size"), [(5, 2), (3, 1), (1, 4)])
def test_a_virtual_batch_of_one_value_is_refused_before_anything_changes(n, size):
    ghost = GhostBatchNorm(4, size)
    before = state(ghost)
    with pytest.raises(ValueError, match=rf"got 1 in the last of \({n}, 4\) split by {size}"):
        ghost(drawn(n, 4))
    assert same_state(ghost, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"virtual_batch_size": 0}, "virtual_batch_size to be a whole number of at least 1, got 0"),
        ({"virtual_batch_size": 2.5}, "virtual_batch_size to be a whole number of at least 1, got 2.5"),
        ({"eps": -1e-5}, "eps to be a number of at least 0, got -1e-05"),
        ({"momentum": "0.1"}, "momentum to be a number from 0 to 1, got '0.1'"),
        ({"momentum": 1.5}, "momentum to be a number from 0 to 1, got 1.5"),
    ],
)
def test_wrong_arguments_of_ghost_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GhostBatchNorm(4, **{"virtual_batch_size": 2, **arguments})


@pytest.mark.parametrize("layer", [GhostBatchNorm(4, 2), FrozenBatchNorm(4)], ids=["ghost", "frozen"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), r"got \(4,\)"),
        (torch.zeros(2, 3), "with C=4, got"),
        (torch.zeros(2, 4, dtype=torch.int64), "floating-point dtype, got torch.int64"),
        ([1.0], "to be a tensor"),
    ],
    ids=["rank", "channels", "dtype", "list"],
)
def test_wrong_input_of_a_layer_is_refused(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer(x)


# --- momentum_for_accumulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 8, 100])
@pytest.mark.parametrize("momentum", [0.0, 1e-12, 0.1, 0.5, 0.999, 1.0])
def test_k_updates_forget_as_much_as_one(momentum, k):
    each = torch.tensor(momentum_for_accumulation(momentum, k), dtype=torch.float64)
    forgotten = -torch.expm1(k * torch.log1p(-each))
    assert forgotten.item() == pytest.approx(momentum, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("momentum", "k", "message"),
    [
        (-0.1, 2, "momentum to be a number from 0 to 1, got -0.1"),
        (1.1, 2, "momentum to be a number from 0 to 1, got 1.1"),
        (None, 2, "momentum to be a number from 0 to 1, got None"),
        (0.1, 0, "micro_batches to be a whole number of at least 1, got 0"),
        (0.1, 2.0, "micro_batches to be a whole number of at least 1, got 2.0"),
    ],
)
def test_wrong_numbers_are_refused(momentum, k, message):
    with pytest.raises(ValueError, match=message):
        momentum_for_accumulation(momentum, k)


# --- replace_batchnorm ------------------------------------------------------------------------------------------


def to_group(bn):
    return nn.GroupNorm(1, bn.num_features)


def test_every_batchnorm_is_replaced_and_the_input_is_not():
    model = nn.Sequential(net(), nn.ModuleDict({"a": nn.ModuleList([nn.BatchNorm1d(2)])}))
    before = repr(model)
    replaced = replace_batchnorm(model, to_group)
    assert [name for name, module in replaced.named_modules() if isinstance(module, nn.GroupNorm)] == list(
        batchnorm_layers(model)
    )
    assert len(list(replaced.modules())) == len(list(model.modules()))
    assert repr(model) == before


def test_nothing_is_shared_with_the_input():
    model = net()
    replaced = replace_batchnorm(model, lambda bn: bn)
    mine = {p.data_ptr() for p in [*model.parameters(), *model.buffers()]}
    assert not mine & {p.data_ptr() for p in [*replaced.parameters(), *replaced.buffers()]}


def test_make_may_change_what_it_gets():
    model = net()
    before = state(model)
    replace_batchnorm(model, lambda bn: bn.requires_grad_(False).apply(lambda m: m.reset_running_stats()))
    assert same_state(model, before) and model[1].weight.requires_grad


def test_a_shared_layer_is_made_once_and_shared_in_the_copy():
    bn = nn.BatchNorm1d(3)
    made = []
    replaced = replace_batchnorm(
        nn.Sequential(bn, nn.Sequential(nn.ReLU(), bn)), lambda bn: made.append(1) or to_group(bn)
    )
    assert replaced[0] is replaced[1][1]
    assert made == [1]


def test_a_layer_that_is_referred_to_outside_the_module_tree_is_replaced_there_too():
    model = net()
    model.listed = (model[1],)
    replaced = replace_batchnorm(model, to_group)
    assert replaced.listed[0] is replaced[1]


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[1].bias = model[0].bias
    replaced = replace_batchnorm(model, lambda bn: bn)
    assert replaced[2].weight is replaced[0].weight
    assert replaced[1].bias is replaced[0].bias


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_model_that_holds_computed_tensors_is_copied(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    x = drawn(4, 3)
    model(x)  # leaves a computed weight behind, which deepcopy refuses
    replaced = replace_batchnorm(model, lambda bn: nn.Identity()).eval()
    torch.testing.assert_close(replaced(x), model.eval()[0](x))


def test_a_root_that_is_a_batchnorm_is_replaced():
    assert isinstance(replace_batchnorm(nn.BatchNorm2d(4), to_group), nn.GroupNorm)


@pytest.mark.parametrize("training", [True, False])
def test_the_replacement_has_the_mode_of_the_layer(training):
    replaced = replace_batchnorm(net().train(training), lambda bn: GhostBatchNorm(bn.num_features, 2))
    assert replaced[1].training == training


def test_a_frozen_layer_s_replacement_is_in_eval_mode():
    assert not replace_batchnorm(freeze_batchnorm(net()), lambda bn: GhostBatchNorm(bn.num_features, 2))[1].training


@on_devices
def test_the_rest_of_the_model_still_computes_the_same(device):
    model, x = net(device).eval(), images(device=device)
    torch.testing.assert_close(replace_batchnorm(model, lambda bn: bn)(x), model(x), rtol=0, atol=0)


def test_make_that_returns_no_module_is_refused():
    with pytest.raises(ValueError, match=r"expected make to return a module for BatchNorm2d.*, got NoneType"):
        replace_batchnorm(net(), lambda bn: None)


def test_replacing_in_a_lazy_model_is_refused_until_it_knows_its_shapes():
    model = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"got '0\.weight' without: run one batch first"):
        replace_batchnorm(model, to_group)
    model(drawn(2, 3))
    replace_batchnorm(model, to_group)


def test_replacing_in_a_model_without_batchnorm_is_refused():
    with pytest.raises(ValueError, match="got Linear without any"):
        replace_batchnorm(nn.Linear(2, 2), to_group)


# --- weight_decay_groups ----------------------------------------------------------------------------------------


def names(model, group):
    of = {id(p): name for name, p in model.named_parameters()}
    return [of[id(p)] for p in group["params"]]


@pytest.mark.parametrize(
    "norm",
    [
        *(make() for kind, make in LAYERS.items() if kind != "lazy"),
        nn.LayerNorm((4, 4)),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        nn.InstanceNorm2d(4, affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_parameters_of_every_norm_are_without_decay(norm):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), norm)
    decay, none = weight_decay_groups(model, 0.1)
    assert names(model, decay) == ["0.weight"]
    assert names(model, none) == [f"1.{name}" for name, _ in norm.named_parameters()]
    assert (decay["weight_decay"], none["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.PReLU()],
    ids=lambda layer: type(layer).__name__,
)
def test_biases_are_without_decay_and_weights_are_not(layer):
    decay, none = weight_decay_groups(layer, 0.1)
    assert all("bias" in name for name in names(layer, none))
    assert all("weight" in name for name in names(layer, decay))
    assert len(decay["params"]) + len(none["params"]) == len(list(layer.parameters()))


def test_a_shared_parameter_is_in_one_group_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    decay, none = weight_decay_groups(model, 0.1)
    assert names(model, decay) == ["0.weight"]
    assert names(model, none) == ["0.bias", "1.bias"]


def test_a_parameter_shared_with_a_norm_or_a_bias_is_without_decay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
            self.bn, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 3)
            self.bn.weight, self.linear.bias = self.scale, self.shift

    model = Model()
    assert names(model, weight_decay_groups(model, 0.1)[0]) == ["linear.weight"]


def test_only_trainable_parameters_are_grouped():
    model = freeze_batchnorm(net())
    model[0].weight.requires_grad = False
    decay, none = weight_decay_groups(model, 0.1)
    assert names(model, decay) == ["3.weight", "6.weight"]
    assert names(model, none) == ["0.bias", "3.bias", "6.bias"]


def test_an_optimizer_takes_the_groups_and_decays_one_of_them():
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = state(model)
    torch.optim.SGD(weight_decay_groups(model, 0.5), lr=1.0).step()
    assert torch.equal(model[0].weight, 0.5 * before["0.weight"])
    assert torch.equal(model[1].weight, before["1.weight"]) and torch.equal(model[0].bias, before["0.bias"])


@pytest.mark.parametrize(
    ("model", "decay", "message"),
    [
        (nn.Linear(2, 2), -0.1, "weight_decay to be a number of at least 0, got -0.1"),
        (nn.ReLU(), 0.1, "expected a model with trainable parameters, got ReLU without any"),
    ],
)
def test_what_cannot_be_grouped_is_refused(model, decay, message):
    with pytest.raises(ValueError, match=message):
        weight_decay_groups(model, decay)


# --- FrozenBatchNorm --------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_frozen_batchnorm_computes_what_eval_computes(shape, dtype, device):
    bn = BatchNorm(4, eps=0.1, device=device, dtype=dtype)
    bn(drawn(*shape, device=device, dtype=dtype))
    torch.nn.init.uniform_(bn.weight, 0.5, 2)
    frozen, x = FrozenBatchNorm.from_batchnorm(bn), drawn(*shape, seed=1, device=device, dtype=dtype)
    want = bn.eval()(x)
    atol = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(frozen.train()(x), want, rtol=atol, atol=atol)
    assert frozen.weight.dtype == dtype and frozen.weight.device == bn.weight.device


def test_a_frozen_batchnorm_has_no_parameters_and_no_training_mode():
    frozen = FrozenBatchNorm(4)
    assert list(frozen.parameters()) == [] and not frozen.training and not frozen.train().training


def test_gradients_pass_through_a_frozen_batchnorm():
    frozen = FrozenBatchNorm(2, eps=0.0)
    frozen.weight.fill_(3.0), frozen.running_var.fill_(4.0)
    x = drawn(5, 2).requires_grad_()
    frozen(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((5, 2), 1.5))


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
def test_what_a_layer_has_not_is_one_and_zero(options):
    bn = nn.BatchNorm1d(4, **options).eval()
    x = drawn(3, 4)
    torch.testing.assert_close(FrozenBatchNorm.from_batchnorm(bn)(x), bn(x))


def test_a_converted_model_computes_the_same_and_its_original_may_train_on():
    model, x = net(), images()
    want = model.eval()(x)
    frozen = replace_batchnorm(model, FrozenBatchNorm.from_batchnorm).train()
    model.train()(x)
    torch.testing.assert_close(frozen(x), want)
    assert [type(m).__name__ for m in frozen].count("FrozenBatchNorm") == 3


def test_a_frozen_batchnorm_shares_no_memory_with_the_layer():
    bn = nn.BatchNorm1d(4)
    frozen = FrozenBatchNorm.from_batchnorm(bn)
    before = state(frozen)
    bn(drawn(8, 4))
    nn.init.zeros_(bn.weight)
    assert same_state(frozen, before)


def test_a_frozen_batchnorm_loads_batchnorm_s_state():
    bn = net()[4]
    frozen = FrozenBatchNorm(5)
    frozen.load_state_dict(bn.state_dict())
    assert torch.equal(frozen.running_var, bn.running_var)
    assert list(frozen.state_dict()) == list(bn.state_dict())[:-1]


def test_a_frozen_batchnorm_prints_its_arguments():
    assert repr(FrozenBatchNorm(4)) == "FrozenBatchNorm(4, eps=1e-05)"


class BatchNormReLU(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenBatchNorm.from_batchnorm(nn.GroupNorm(1, 4)), "expected a BatchNorm layer, got GroupNorm"),
        (lambda: FrozenBatchNorm.from_batchnorm(nn.BatchNorm1d(4, track_running_stats=False)), "running statistics"),
        (lambda: FrozenBatchNorm.from_batchnorm(BatchNormReLU(4)), "BatchNormReLU with a forward of its own"),
        (lambda: FrozenBatchNorm(4, eps=-1.0), "eps to be a number of at least 0, got -1.0"),
    ],
)
def test_what_cannot_be_a_frozen_batchnorm_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
