"""What every Batch Normalization layer of a model is up to."""

import copy
import math

import pytest
import torch
from torch import nn

from course_lib.inspection import BatchNormTable, inspect_batchnorm
from course_lib.modes import evaluating
from course_lib.running_stats import BatchNorm
from tests.devices import DEVICES
from tests.models import KINDS, drawn, same_state, small_net, state_of

everywhere = pytest.mark.parametrize("device", DEVICES)


def one_row(layer, batches=None):
    [row] = inspect_batchnorm(layer, batches)
    return row


def test_one_row_a_layer_with_names_kinds_and_modes():
    layer = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Linear(4, 4), layer, nn.Sequential(BatchNorm(4).eval()), layer, nn.InstanceNorm1d(4))
    table = inspect_batchnorm(net)
    assert [(row.name, row.kind, row.channels, row.mode) for row in table] == [
        ("1", "BatchNorm1d", 4, "train"),
        ("2.0", "BatchNorm", 4, "eval"),
    ]


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: type(layer).__name__)
def test_every_kind_gets_a_row(layer):
    row = one_row(layer)
    assert row.kind == type(layer).__name__ and row.tracked and row.counter == 0


def frozen(layer):
    return layer.requires_grad_(False)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (nn.BatchNorm1d(2), ("", "buffers, weight, bias")),
        (nn.BatchNorm1d(2).eval(), ("mode", "weight, bias")),
        (frozen(nn.BatchNorm1d(2)), ("grad", "buffers")),
        (frozen(nn.BatchNorm1d(2)).eval(), ("mode, grad", "")),
        (nn.BatchNorm1d(2, affine=False), ("", "buffers")),
        (nn.BatchNorm1d(2, momentum=0.0), ("", "weight, bias")),
        (nn.BatchNorm1d(2, momentum=None), ("", "buffers, weight, bias")),
        (nn.BatchNorm1d(2, bias=False), ("", "buffers, weight")),
        (BatchNorm(2, track_running_stats=False), ("", "weight, bias")),
    ],
)
def test_what_is_frozen_and_what_updates(layer, want):
    row = one_row(layer)
    assert (row.frozen, row.updates) == want


def test_updates_are_what_a_training_step_changes():
    net = small_net()
    net[1].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    net(drawn((6, 1, 4, 4), seed=4, dtype=torch.float32)).square().sum().backward()
    optimiser.step()
    for row in inspect_batchnorm(net):
        changed = {key for key, v in net.state_dict().items() if not torch.equal(v, before[key])}
        changed = {key.partition(".")[2] for key in changed if key.startswith(f"{row.name}.")}
        want = set(row.updates.replace("buffers", "running_mean, running_var, num_batches_tracked").split(", "))
        assert changed == want


def test_tracking_and_counter():
    layer = BatchNorm(2)
    layer(torch.randn(4, 2))
    assert (one_row(layer).tracked, one_row(layer).counter) == (True, 1)
    row = one_row(BatchNorm(2, track_running_stats=False))
    assert (row.tracked, row.counter) == (False, None)


@everywhere
@pytest.mark.parametrize("sizes", [[60], [1, 20, 0, 39]])
def test_drift_is_the_largest_distance_in_standard_deviations(sizes, device):
    layer, x = nn.BatchNorm1d(3, device=device), drawn((60, 3, 4), mean=5.0, dtype=torch.float32, device=device)
    layer.running_mean.copy_(torch.tensor([5.0, 1.0, 8.0]))
    exact = x.double()
    want = (layer.running_mean.double() - exact.mean((0, 2))).abs() / exact.std((0, 2), correction=0)
    assert one_row(layer, x.split(sizes)).drift == pytest.approx(want.max().item(), rel=1e-9)


def test_drift_is_measured_where_the_model_predicts():
    net = small_net()
    x = drawn((50, 1, 4, 4), seed=2, dtype=torch.float32)
    with evaluating(net), torch.no_grad():
        inside = net[:5](x)
    want = (net[5].running_mean - inside.mean(0)).abs() / inside.std(0, correction=0)
    assert inspect_batchnorm(net, [x])[1].drift == pytest.approx(want.max().item(), rel=1e-4)


def test_drift_of_a_constant_channel():
    layer = nn.BatchNorm1d(1)
    for value in (0.1, 0.3, 0.7, 1.1):  # their squares round up and down
        still = torch.full((7, 1), value, dtype=torch.float64)
        assert one_row(layer.double(), [still]).drift == math.inf
    assert one_row(layer, [0 * still]).drift == 0.0


def test_drift_of_a_channel_that_is_nan_is_nan():
    assert math.isnan(one_row(nn.BatchNorm1d(2), [torch.tensor([[1.0, math.nan], [2.0, 3.0]])]).drift)


def test_no_drift_without_data_or_running_statistics():
    assert one_row(nn.BatchNorm1d(2)).drift is None
    assert one_row(nn.BatchNorm1d(2, track_running_stats=False), [torch.randn(4, 2)]).drift is None
    unused = nn.ModuleDict({"unused": nn.BatchNorm1d(2)})
    unused.forward = lambda x: x
    assert inspect_batchnorm(unused, [torch.ones(2, 2)])[0].drift is None


def test_dead_channels_by_weight_by_running_variance_and_by_the_data():
    layer = nn.BatchNorm1d(4)
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.running_var[2] = 1e-13
    assert one_row(layer).dead == (0, 2)
    x = drawn((30, 4), dtype=torch.float32)
    x[:, 1] *= 1e-4  # little of it is left by a running variance of 1
    x[:, 3] = 7.0
    layer.running_var[2] = 1.0
    assert one_row(layer, [x]).dead == (0, 1, 3)


def test_dead_channels_without_running_statistics_need_data():
    layer = BatchNorm(2, track_running_stats=False)
    assert one_row(layer).dead is None
    assert one_row(layer, [torch.tensor([[1.0, 2.0], [1.0, 3.0]])]).dead == (0,)


def test_a_lazy_layer_is_unknown_until_it_meets_data():
    row = one_row(nn.LazyBatchNorm1d())
    assert (row.channels, row.drift, row.dead) == (0, None, None)
    row = one_row(nn.LazyBatchNorm1d(), [drawn((9, 2), dtype=torch.float32)])
    assert row.channels == 2 and row.drift > 0


def test_a_model_on_meta_has_rows_but_no_numbers():
    net = small_net().to("meta")
    for batches in (None, [torch.zeros(2, 1, 4, 4, device="meta")]):
        assert [(row.counter, row.drift, row.dead) for row in inspect_batchnorm(net, batches)] == [(None,) * 3] * 2


def test_inspection_leaves_no_trace_also_after_an_exception():
    net = small_net()
    before = state_of(net)
    inspect_batchnorm(net, [drawn((6, 1, 4, 4), dtype=torch.float32)])
    same_state(net, before)
    with pytest.raises(RuntimeError):
        inspect_batchnorm(net, [torch.zeros(6, 2, 4, 4)])
    same_state(net, before)


def test_a_tuple_holds_several_arguments_and_names_are_followed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x, y):
            return self.bn(input=x + y)

    assert one_row(Two(), [(torch.ones(4, 2), torch.randn(4, 2))]).drift > 0


def test_one_tensor_is_no_iterable_of_batches():
    with pytest.raises(ValueError, match="expected an iterable of batches, got one tensor"):
        inspect_batchnorm(nn.BatchNorm1d(3), torch.zeros(4, 3))


def test_the_table_prints_one_line_a_layer():
    net = small_net()
    nn.init.zeros_(net[1].weight)
    lines = repr(inspect_batchnorm(net, [drawn((6, 1, 4, 4), dtype=torch.float32)])).splitlines()
    assert lines[0].split() == [
        "name",
        "kind",
        "channels",
        "mode",
        "tracked",
        "frozen",
        "updates",
        "counter",
        "drift",
        "dead",
    ]
    assert lines[1].split()[:5] == ["1", "BatchNorm2d", "3", "train", "yes"] and lines[1].endswith("0, 1, 2")
    assert lines[2].split()[:6] == ["5", "BatchNorm", "4", "eval", "yes", "mode"] and len(lines) == 3
    assert len({line.index(part) for line, part in zip(lines, ("kind", "BatchNorm2d", "BatchNorm"), strict=True)}) == 1


def test_a_table_without_layers_says_so():
    assert repr(inspect_batchnorm(nn.Linear(2, 2))) == "no Batch Normalization layer"
    assert isinstance(inspect_batchnorm(nn.Linear(2, 2)), BatchNormTable)


def test_unknown_values_print_as_dashes():
    line = repr(inspect_batchnorm(BatchNorm(2, affine=False, track_running_stats=False))).splitlines()[1]
    assert line.split() == ["–", "BatchNorm", "2", "train", "no", "–", "–", "–", "–", "–"]
