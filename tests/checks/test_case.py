"""The inputs of a scenario: drawn from a seed, rounded, lifted, watched."""

import numpy as np
import pytest
import torch

from course_lib.checks.case import Case


def drawn(seed=3, label="demo", dtypes=("float32",), **options):
    """Everything a case hands out, one after the other."""
    case = Case(label, seed, dtypes, **options)
    return [
        case.integer(2, 9),
        case.array((2, 3), mean=5.0),
        case.choice("abcdefgh"),
        case.given(case.uniform(0, 1, 4), "w"),
    ]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_seed_asks_the_same():
    assert_same(drawn(), drawn())


@pytest.mark.parametrize("other", [{"seed": 4}, {"label": "another scenario"}])
def test_another_seed_or_scenario_asks_something_else(other):
    assert not np.isin(drawn()[1], drawn(**other)[1]).any()


def test_the_numbers_are_those_of_the_release():
    # A changed stream of numbers would make every shipped expectation wrong.
    case = Case("demo", 0)
    assert case.integer(0, 99) == 65
    np.testing.assert_allclose(case.array((2,)), [1.00168990, 1.32870427], rtol=1e-7)


def test_inputs_come_in_the_cases_dtype():
    assert {np.asarray(v).dtype for v in drawn()[1::2]} == {np.dtype(np.float32)}


def test_a_lifted_case_hands_out_the_rounded_numbers_in_float64():
    lifted = drawn(lift=True)
    assert {np.asarray(v).dtype for v in lifted[1::2]} == {np.dtype(np.float64)}
    assert_same(drawn(), lifted)


def test_the_dtype_of_a_lifted_case_is_still_the_one_drawn():
    assert Case("demo", 0, ("float32",), lift=True).dtype == np.float32


def test_the_seed_chooses_among_the_dtypes():
    assert {str(Case("demo", seed, ("float32", "float64")).dtype) for seed in range(20)} == {"float32", "float64"}


def test_integers_reach_both_ends():
    case = Case("demo", 0)
    assert {case.integer(2, 4) for _ in range(50)} == {2, 3, 4}


def test_every_option_may_be_chosen():
    case = Case("demo", 0)
    assert {case.choice("abc") for _ in range(50)} == set("abc")


def test_mean_and_std_broadcast():
    x = Case("demo", 0).array((1000, 3), mean=np.array([0, 10, 20]), std=np.array([1, 2, 3]))
    np.testing.assert_allclose(x.mean(axis=0), [0, 10, 20], atol=0.5)
    np.testing.assert_allclose(x.std(axis=0), [1, 2, 3], rtol=0.2)


@pytest.mark.parametrize("lift", [False, True])
def test_untouched_inputs_are_untouched(lift):
    case = Case("demo", 0, lift=lift)
    case.array((3,))
    case.given([np.nan, 1.0], "w")
    assert case.changed() == ""


@pytest.mark.parametrize("lift", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_input_is_noticed(which, lift):
    case = Case("demo", 0, lift=lift)
    inputs = [case.array((3,), name="first"), case.array((2, 2), name="second")]
    inputs[which].flat[1] += 1e-3
    assert case.changed() == ("first", "second")[which]


def test_every_changed_input_is_named():
    case = Case("demo", 0)
    for x in (case.array((3,), name="x"), case.array((2,), name="y"), case.array((2,), name="z")):
        if len(x) == 2:
            x += 1
    assert case.changed() == "y, z"


def test_a_case_says_what_it_asked():
    case = Case("demo", 0, ("float32",))
    case.array((3, 2))
    case.array((2,), name="gamma")
    eps = case.number("eps", 0.5, 1)
    assert case.asked() == f"float32: x (3, 2), gamma (2,), eps={eps}"


def test_a_case_that_asked_nothing_says_nothing():
    assert Case("demo", 0).asked() == ""


def digest(values=(1.0, 2.0), dtypes=("float64",), lift=False):
    case = Case("demo", 0, dtypes, lift=lift)
    case.given(np.array(values), "x")
    return case.digest()


def test_equal_questions_have_equal_digests():
    assert digest() == digest()


@pytest.mark.parametrize("lift", [False, True])
def test_a_digest_does_not_depend_on_the_last_bits(lift):
    assert digest((1.0 + 1e-12, 2.0), lift=lift) == digest(lift=lift)


def test_a_lifted_question_has_the_digest_of_the_question():
    assert digest(dtypes=("float32",), lift=True) == digest(dtypes=("float32",))


@pytest.mark.parametrize("other", [{"values": (1.1, 2.0)}, {"values": (2.0, 1.0)}, {"dtypes": ("float32",)}])
def test_another_question_has_another_digest(other):
    assert digest(**other) != digest()


def test_a_drawn_integer_is_part_of_the_digest():
    digests = set()
    for low in range(5):
        case = Case("demo", 0)
        case.integer(low, low)
        digests.add(case.digest())
    assert len(digests) == 5


# --- torch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_come_in_the_cases_dtype(name):
    case = Case("demo", 0, (name,))
    assert case.tensor((2, 3)).dtype == case.torch_dtype == getattr(torch, name)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_lifted_tensor_holds_the_rounded_numbers(name):
    tensor, lifted = (Case("demo", 0, (name,), lift=lift).tensor((20,)) for lift in (False, True))
    assert lifted.dtype == torch.float64
    assert torch.equal(tensor.double(), lifted)


def test_a_tensor_beside_a_half_input_is_float32():
    case = Case("demo", 0, ("float16",))
    assert case.tensor((3,), dtype="float32").dtype == case.as_torch("float32") == torch.float32


@pytest.mark.parametrize("watch", [True, False])
def test_a_changed_tensor_is_noticed_where_it_is_watched(watch):
    case = Case("demo", 0)
    case.tensor((3,), name="buffer", watch=watch).add_(1)
    assert case.changed() == ("buffer" if watch else "")


def test_tensors_are_part_of_the_digest_and_of_what_was_asked():
    one, other = Case("demo", 0), Case("demo", 0)
    one.given_tensor([1.0, 2.0], "x")
    other.given_tensor([1.0, 3.0], "x")
    assert one.digest() != other.digest()
    assert one.asked() == "float64: x (2,)"


@pytest.mark.parametrize("lift", [False, True])
def test_a_filled_model_does_not_depend_on_torchs_generator(lift):
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        models.append(Case("demo", 0, ("float32",), lift=lift).fill(net).state_dict())
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name])
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float64 if lift else torch.float32)
    assert models[0]["1.running_var"].min() >= 0.5 and models[0]["1.weight"].min() >= 0.5
    assert models[0]["0.weight"].unique().numel() == 12
