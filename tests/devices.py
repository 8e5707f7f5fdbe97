"""The devices that tests run on, and how ranks can run beside them."""

import os

import pytest
import torch

#: The CPU and CUDA where there is one. With `--device NAME` that one alone, see `tests/conftest.py`.
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

#: CUDA does not survive a fork, and other tests of the same process use it.
forked = pytest.mark.skipif(
    os.name == "nt" or torch.cuda.is_available(), reason="no fork on Windows, and none after CUDA was used"
)
HOWS = ["threads", pytest.param("fork", marks=forked)]
