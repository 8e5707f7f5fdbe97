"""The devices that tests run on, the CPU and CUDA where there is one, and how ranks can run beside it."""

import os

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

#: CUDA does not survive a fork, and other tests of the same process use it.
forked = pytest.mark.skipif(
    os.name == "nt" or torch.cuda.is_available(), reason="no fork on Windows, and none after CUDA was used"
)
HOWS = ["threads", pytest.param("fork", marks=forked)]
