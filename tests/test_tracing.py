"""Tracing, copying, comparing: what fusing a whole model stands on."""

import pytest
import torch
from torch import nn

from course_lib.running_stats import BatchNorm, is_batchnorm
from course_lib.tracing import difference, reproducible, trace_layers, twin


@pytest.mark.parametrize(
    ("got", "want", "gap"),
    [
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), 0.25),
        (torch.tensor([0.5]), torch.tensor([0.25]), 0.25),
        ((torch.ones(2), [torch.ones(1)]), (torch.ones(2), [torch.zeros(1)]), 1.0),
        ({"a": torch.zeros(1)}, {"a": torch.ones(1)}, 1.0),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]), 0.0),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), float("inf")),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2), torch.ones(2).double(), float("inf")),
        (torch.ones(2), (torch.ones(2), torch.ones(2)), float("inf")),
        (torch.ones(1).bfloat16() * 1.0625, torch.ones(1).bfloat16(), 0.0),
        (torch.ones(1).bfloat16() * 1.25, torch.ones(1).bfloat16(), 0.25),
        (torch.empty(0), torch.empty(0), 0.0),
        (3, 3, 0.0),
    ],
)
def test_difference(got, want, gap):
    assert min(difference(got, want), 1e30) == pytest.approx(min(gap, 1e30))


def test_a_twin_has_its_own_tensors():
    model = torch.nn.utils.spectral_norm(nn.Linear(3, 3))
    model(torch.ones(2, 3))  # leaves a computed weight behind, which deepcopy refuses
    other = twin(model)
    assert torch.equal(other.weight_orig, model.weight_orig) and other.weight_orig is not model.weight_orig


def test_a_twin_has_its_own_hooks():
    model, x, called = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.ones(2, 3), []
    model[0].register_forward_hook(lambda *_: called.append("both"))
    other = twin(model)
    other[1].register_forward_hook(lambda *_: called.append("other"))
    model[1].register_forward_hook(lambda *_: called.append("model"))
    assert other[0]._forward_pre_hooks is not other[1]._forward_pre_hooks
    model(x), other(x)
    assert called == ["both", "model", "both", "other"]


def test_layers_of_other_packages_are_not_looked_into():
    model = nn.Sequential(nn.Linear(2, 2), BatchNorm(2))
    assert [node.target for node in trace_layers(model, (torch.ones(3, 2),), is_batchnorm).graph.nodes][1:3] == [
        "0",
        "1",
    ]


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, nn.Identity()])
def test_a_twin_computes_the_same(norm):
    model, x = norm(nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    torch.testing.assert_close(twin(model)(x), model(x))


def test_random_numbers_are_the_same_inside_whatever_was_drawn_before():
    inside = []
    for _ in range(2):
        torch.rand(1)
        with reproducible():
            inside.append(torch.rand(3))
    assert torch.equal(*inside)


def test_random_numbers_go_on_outside():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with reproducible():
        torch.rand(3)
    assert torch.equal(torch.rand(3), want)


def test_there_are_no_gradients_inside():
    with reproducible():
        assert not torch.is_grad_enabled()


def flow(x, flag=False, mask=None):
    return x if mask is None and not flag else -x


class Flowing(nn.Module):
    def forward(self, x, flag=False, mask=None):
        return flow(x, flag, mask)


@pytest.mark.parametrize("args", [(), (True,), (False, torch.ones(1)), (True, None)], ids=str)
def test_arguments_that_are_no_tensors_are_those_of_the_example(args):
    x = torch.ones(2)
    assert torch.equal(trace_layers(Flowing(), (x, *args), is_batchnorm)(x, *args), flow(x, *args))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x, *, flag=False: flow(x, flag),
        lambda self, x, flag=False, /: flow(x, flag),
        lambda self, x, *others, flag=False, **more: flow(x, flag),
    ],
    ids=["by name alone", "by place alone", "after many"],
)
def test_a_default_is_kept_however_its_argument_is_given(forward):
    model = type("Model", (nn.Module,), {"forward": forward})()
    x = torch.ones(2)
    assert torch.equal(trace_layers(model, (x,), is_batchnorm)(x), x)


def test_a_graph_has_its_own_copies_of_the_layers():
    model = nn.Sequential(nn.Linear(2, 2))
    traced = trace_layers(model, (torch.ones(1, 2),), is_batchnorm)
    assert traced.get_submodule("0") is not model[0]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, x: x if x.sum() > 0 else -x, "control flow"),
        (lambda self, x: x * float(x.max()), "TypeError at"),
        (lambda self, x: sum(row for row in x), "TraceError at"),
    ],
    ids=["if", "float", "for"],
)
def test_what_cannot_be_traced_is_named(forward, said):
    model = type("Model", (nn.Module,), {"forward": forward})()
    with pytest.raises(ValueError) as error:
        trace_layers(model, (torch.ones(2, 2),), is_batchnorm)
    assert "expected a model that torch.fx can trace" in str(error.value)
    assert "`(lambda self, x:" in str(error.value) and said in str(error.value)


def test_a_layer_alone_is_refused():
    with pytest.raises(ValueError, match="expected a network of layers, got a BatchNorm2d alone"):
        trace_layers(nn.BatchNorm2d(3), (torch.ones(1, 3, 2, 2),), is_batchnorm)


def test_a_lazy_model_is_asked_to_see_a_batch_first():
    model, x = nn.Sequential(nn.LazyConv2d(3, 1), nn.LazyBatchNorm2d()), torch.ones(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"got '0\.weight' without: run one batch first"):
        trace_layers(model, (x,), is_batchnorm)
    model(x)
    trace_layers(model, (x,), is_batchnorm)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("offset", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.norm(x) + self.offset


def test_what_was_left_out_of_the_state_dict_still_is():
    model = nn.Sequential(Remembering())
    traced = trace_layers(model, (torch.ones(3, 2),), is_batchnorm)
    assert dict(traced.named_buffers()).keys() == dict(model.named_buffers()).keys()
    assert traced.state_dict().keys() == model.state_dict().keys()
