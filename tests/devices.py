"""The devices that tests run on: the CPU, and CUDA where there is one."""

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
