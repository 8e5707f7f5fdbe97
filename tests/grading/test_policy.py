"""The source policy: forbidden calls and tampering are found, and honest code is left in peace."""

import ast
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib.checks.piece import TOPICS
from course_lib.grading.policy import for_a_person, read

RIGHT = Path(__file__).parents[1] / "right_answers"


def notebook(answer, *own, piece="running_stats.BatchNorm"):
    """A notebook with one answer cell and cells of the student's own before it."""
    name = piece.split(".")[1]
    cells = [new_markdown_cell("# nn.BatchNorm2d(3)"), *map(new_code_cell, own), new_code_cell(answer)]
    cells[-1].metadata.update(nbgrader={"grade_id": name, "solution": True, "locked": False}, course={"piece": piece})
    return new_notebook(cells=cells)


def layer(body, *, base="nn.Module"):
    return f"class BatchNorm({base}):\n    def forward(self, x):\n        {body}\n"


def messages(*args, **kwargs):
    return [finding.message for finding in read(notebook(*args, **kwargs))]


FORBIDDEN = {
    "a layer": ("from torch import nn", layer("return nn.BatchNorm2d(3)(x)"), "torch.nn.BatchNorm2d"),
    "a base class": ("from torch import nn", layer("return x", base="nn.BatchNorm1d"), "torch.nn.BatchNorm1d"),
    "the name itself": ("from torch import nn", "BatchNorm = nn.BatchNorm2d", "torch.nn.BatchNorm2d"),
    "its module": ("import torch", layer("return torch.nn.modules.batchnorm._BatchNorm"), "torch.nn.modules.batchnorm"),
    "another layer": ("import torch.nn as N", layer("return N.SyncBatchNorm(3)"), "torch.nn.SyncBatchNorm"),
    "the function": ("import torch.nn.functional as F", layer("return F.batch_norm(x, 0, 1)"), "batch_norm"),
    "the function, imported": ("from torch.nn.functional import batch_norm as b", layer("return b(x)"), "batch_norm"),
    "the native one": ("import torch", layer("return torch.native_batch_norm(x)"), "torch.native_batch_norm"),
    "the operator": ("import torch", layer("return torch.ops.aten.native_batch_norm(x)"), "native_batch_norm"),
    "another name": ("import torch\nT = torch\nB = T.nn.BatchNorm2d", layer("return B(3)(x)"), "torch.nn.BatchNorm2d"),
    "getattr": ("from torch import nn", layer('return getattr(nn, "BatchNorm2d")(3)(x)'), "torch.nn.BatchNorm2d"),
    "vars": ("from torch import nn", layer('return vars(nn)["BatchNorm2d"](3)(x)'), "torch.nn.BatchNorm2d"),
    "importlib": (
        "import importlib",
        layer('return importlib.import_module("torch.nn").BatchNorm2d(3)(x)'),
        "torch.nn.BatchNorm2d",
    ),
    "a star": ("from torch.nn import *", layer("return BatchNorm2d(3)(x)", base="Module"), "torch.nn.BatchNorm2d"),
    "a helper": (
        "from torch import nn\ndef helper(x):\n    return nn.BatchNorm2d(3)(x)",
        layer("return helper(x)"),
        "nn",
    ),
    "a helper's helper": (
        "from torch import nn\nbn = nn.BatchNorm2d\nmake = lambda: bn(3)\ndef helper(x):\n    return make()(x)",
        layer("return helper(x)"),
        "torch.nn.BatchNorm2d",
    ),
    "a patched method": (
        "from torch import nn",
        layer("return x") + "BatchNorm.forward = nn.BatchNorm2d.forward",
        "torch.nn.BatchNorm2d",
    ),
}


@pytest.mark.parametrize(("own", "answer", "named"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_call_is_named_and_belongs_to_its_piece(own, answer, named):
    [finding] = read(notebook(answer, own))
    assert finding.piece == "running_stats.BatchNorm" and named in finding.message
    assert for_a_person([finding]) == ""


@pytest.mark.parametrize(
    ("piece", "own", "answer"),
    [
        ("algorithm.batch_stats", "import torch", "def batch_stats(x):\n    return torch.var_mean(x)"),
        (
            "modes.BatchNormFunction",
            "import torch",
            "class BatchNormFunction(torch.autograd.Function):\n    y = torch.batch_norm",
        ),
        (
            "modes.clinic_momentum",
            "import torch.nn.functional as F",
            "def clinic_momentum(r, b, m):\n    F.batch_norm(r, r, b)",
        ),
        ("modes.accepts", "", "def accepts(cls):\n    return 'Wrong' not in cls.__name__"),
        ("modes.accepts", "import inspect", "def accepts(cls):\n    return 'var' in inspect.getsource(cls)"),
        (
            "modes.accepts",
            "from course_lib.checks import check",
            "def accepts(cls):\n    return check('running_stats.BatchNorm', cls).passed",
        ),
        (
            "finetuning.recalibrate",
            "from torch.optim.swa_utils import update_bn",
            "def recalibrate(m, b):\n    update_bn(b, m)",
        ),
        (
            "sync.convert_sync_batchnorm",
            "from torch import nn",
            "def convert_sync_batchnorm(m):\n    return nn.SyncBatchNorm.convert_sync_batchnorm(m)",
        ),
        (
            "fusion.fuse_conv_bn",
            "from torch.nn.utils.fusion import fuse_conv_bn_eval",
            "def fuse_conv_bn(c, b):\n    return fuse_conv_bn_eval(c, b)",
        ),
        (
            "fusion.fuse",
            "import torch.fx.experimental.optimization as o",
            "def fuse(m, e):\n    return o.fuse(m)",
        ),
    ],
)
def test_every_row_of_the_table_is_found(piece, own, answer):
    [finding] = read(notebook(answer, own, piece=piece))
    assert finding.piece == piece


@pytest.mark.parametrize(
    ("own", "answer", "piece"),
    [
        (
            "from torch import nn\noracle = nn.BatchNorm2d(3)\nprint(oracle)",
            layer("return x"),
            "running_stats.BatchNorm",
        ),
        (
            "from torch import nn\ndef helper(x):\n    return nn.BatchNorm2d(3)(x)",
            layer("return x"),
            "modes.clinic_momentum",
        ),
        (
            "from torch import nn",
            "def freeze_batchnorm(m):\n    return nn.BatchNorm2d(3)",
            "finetuning.freeze_batchnorm",
        ),
        ("from torch import nn", "def bn_modes(m):\n    return nn.modules.batchnorm._BatchNorm", "modes.bn_modes"),
        ("from torch import nn", "def accepts(cls):\n    return cls(3)(nn.BatchNorm2d(3))", "modes.accepts"),
        (
            "%matplotlib inline\nimport torch.nn as nn",
            layer("# F.batch_norm\n        return x"),
            "running_stats.BatchNorm",
        ),
        ("!pip list\nx = 1", layer("'''as nn.BatchNorm2d'''"), "running_stats.BatchNorm"),
        ("this does not parse (", layer("return x"), "running_stats.BatchNorm"),
        (
            "from IPython.display import display\nget_ipython().run_line_magic('time', '')",
            layer("return x"),
            "running_stats.BatchNorm",
        ),
        ("from course_lib.checks import check, expect_release", layer("return x"), "running_stats.BatchNorm"),
        ("import sys\nprint(sys.version)\nsys.setrecursionlimit(99)", layer("return x"), "running_stats.BatchNorm"),
    ],
)
def test_honest_code_is_left_in_peace(own, answer, piece):
    assert read(notebook(answer, own, piece=piece)) == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("get_ipython().ast_transformers.append(1)", "IPython's internals"),
        ("from IPython import get_ipython\nshell = get_ipython()\nshell.kernel.do_execute = 1", "IPython's internals"),
        ("from IPython.core.interactiveshell import InteractiveShell", "IPython's internals"),
        ("import sys\nsys.modules['numpy'] = 1", "frames or modules"),
        ("import sys as s\nf = s._getframe()", "frames or modules"),
        ("from sys import modules\nmodules.clear()", "frames or modules"),
        ("import inspect\ninspect.currentframe()", "frames of the caller"),
        ("try:\n    1/0\nexcept Exception as e:\n    e.__traceback__.tb_frame.f_back", "frames of the caller"),
        ("import ctypes\nctypes.cast(1, 2)", "ctypes"),
        ("import gc\ngc.get_objects()", "other people's objects"),
        ("import course_lib.checks as c\nc.judge = 1", "the grader"),
        ("from course_lib.checks.observe import observe", "the grader"),
        ("import course_lib.plugging\ncourse_lib.plugging._ORIGINALS", "the grader"),
        ("from ipykernel.kernelapp import IPKernelApp", "the kernel"),
        ("exec(open('/srv/course_lib/algorithm.py').read())", "text that is run as code"),
        ("import builtins\nbuiltins.eval('1')", "text that is run as code"),
        ("__import__('os')", "text that is run as code"),
    ],
)
def test_tampering_needs_a_person(source, what):
    findings = read(notebook(layer("return x"), source))
    assert {finding.piece for finding in findings} == {None}
    assert any(what in finding.message for finding in findings)
    assert for_a_person(findings).endswith("no points before a person has looked at it")


def test_putting_a_model_into_eval_mode_runs_no_text():
    assert read(notebook(layer("return x"), "model = Layer()\nmodel.eval()\nmodel.train().eval()")) == []


def test_code_too_deep_to_be_read_needs_a_person_and_stops_nobody():
    [finding] = read(notebook(layer("return x"), "y = " + "+".join(["1"] * 1500)))
    assert finding.piece is None and "nested too deeply" in finding.message


def test_a_locked_cell_is_not_looked_at_for_tampering():
    book = notebook(layer("return x"), "import ctypes")
    book.cells[1].metadata["nbgrader"] = {"grade_id": "finale", "solution": False, "locked": True}
    assert read(book) == []


def test_a_local_name_is_not_the_import_of_the_same_name():
    own = "from course_lib.checks import check"
    loop = "def accepts(cls):\n    return all(check(cls) for check in [callable])"
    assert read(notebook(loop, own, piece="modes.accepts")) == []
    hidden = "def accepts(cls):\n    see = check\n    return see('running_stats.BatchNorm', cls).passed"
    assert read(notebook(hidden, own, piece="modes.accepts")) != []


def test_a_locked_cell_connects_no_answers():
    # The finale uses all pieces, and names that answers may use, too.
    answer = "def merge_moments(a, b):\n    return x"
    own = "def convert_sync_batchnorm(m):\n    return nn.SyncBatchNorm(3)"
    book = notebook(answer, "from torch import nn", own, "x = convert_sync_batchnorm(1)", piece="sync.merge_moments")
    assert read(book) != []
    book.cells[3].metadata["nbgrader"] = {"grade_id": "finale", "solution": False, "locked": True}
    assert read(book) == []


#: Right as objects, which is all that `check` looks at; a student may not hand them in.
OBJECTS_ONLY = {"DerivedFromTorchs", "through_torchs_function"}


@pytest.mark.parametrize("topic", TOPICS)
def test_no_false_alarm_on_right_answers(topic):
    tree = ast.parse((RIGHT / f"{topic}.py").read_text(encoding="utf-8"))
    # The table they are filed in is the tests' own.
    tree.body = [
        node for node in tree.body if getattr(node, "name", "") != "right" and "RIGHT[" not in ast.unparse(node)
    ]
    filed = {}
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", ()):
            if ast.unparse(decorator).startswith("right("):
                filed[node.name] = ast.literal_eval(ast.unparse(decorator).removeprefix("right"))
        node.decorator_list = []
    assert filed
    found = set()
    for style, name in filed.items():
        own = [node for node in tree.body if getattr(node, "name", None) not in filed or node.name == style]
        source = ast.unparse(ast.Module(own, []))
        if read(notebook(f"{name} = {style}", source, piece=f"{topic}.{name}")):
            found.add(style)
    assert found == OBJECTS_ONLY & set(filed)


def test_a_parameter_is_not_the_variable_of_the_same_name():
    # An experiment, or the notebook's last cell, has a `model` of its own.
    own = "from torch import nn\nmodel = nn.BatchNorm2d(3)\nfor x in range(3):\n    model(x)"
    answer = "def update_running_stats(model, x):\n    y = [model for model in x]\n    return (lambda x: x)(y)"
    assert messages(answer, own, piece="running_stats.update_running_stats") == []


def test_a_global_of_a_function_is_the_variable_of_the_same_name():
    own = "from torch import nn\nmodel = nn.BatchNorm2d(3)"
    answer = "def update_running_stats(x):\n    global model\n    model = model\n    return model(x)"
    assert len(messages(answer, own, piece="running_stats.update_running_stats")) == 1
