"""Problem set 4: what is asked of the seven pieces of `course_lib.finetuning`, in the order of the exercises."""

import importlib

for part in ("freezing", "unfreezing", "recalibration", "ghosts", "replacement", "decay"):
    importlib.import_module(f"{__name__}_{part}")
