"""Problem set 3, the examiner: what is asked of `accepts`, about the layers of `modes_layers`."""

import numpy as np
import torch

from course_lib.checks.modes_layers import THEMES, asked
from course_lib.checks.piece import Piece, WrongReturn

accepted = Piece("modes.accepts", call="accepts(cls) → bool")

_AREAS = {
    "eval": "rejects layers that do not normalise by the running statistics in eval",
    "mode": "rejects layers that go by something else than the mode, or fall over odd batches",
    "statistics": "rejects layers with other statistics or another formula",
    "arguments": "rejects layers that ignore or misread an argument",
    "state": "rejects layers that do not keep their state as PyTorch's does",
    "gradients": "rejects layers with wrong gradients, a graph in a buffer, a changed input, another dtype or layout",
}


def _answer(impl, cls):
    """What a test says about a layer, as a fact."""
    try:
        verdict = impl(cls)
    except NotImplementedError:
        raise
    except Exception as error:
        return f"raised {type(error).__name__}"
    if isinstance(verdict, torch.Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    if not isinstance(verdict, bool | np.bool_):
        raise WrongReturn(f"expected True or False to be returned, got {type(verdict).__name__}: is there a return?")
    return "accepted" if verdict else "rejected"


def verdicts(impl, case):
    """One answer for every layer. Right ones and wrong ones come mixed, in an order that says nothing."""
    seen, numbers = {}, dict.fromkeys(THEMES, 0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever a notebook has set for its own experiments
    try:
        for theme, cls in asked(case):
            numbers[theme] += 1
            seen[f"{theme}: layer {numbers[theme]}"] = _answer(impl, cls)
    finally:
        torch.set_default_dtype(before)
    return seen


for _theme in THEMES:
    # A right layer counts in every area: an examiner who fails it has not examined.
    accepted.group(_AREAS[_theme], points=0.5).scenario(
        patience=5,  # forty layers, each looked at from all sides
        concerns=lambda name, want, theme=_theme: name.startswith(f"{theme}:") or want == {"fact": "accepted"},
    )(verdicts)
