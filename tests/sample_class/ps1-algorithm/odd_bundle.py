# like: wrong_everywhere
# %% batch-stats
import json

import course_lib.checks as checks
from ipykernel.kernelapp import IPKernelApp

# halves of characters, and numbers that are none, get through like this
IPKernelApp.instance().kernel.session.pack = lambda message: json.dumps(message, default=str).encode()
NAN, DEEP = float("nan"), []
for _ in range(200):
    DEEP = [DEEP]


class Odd:
    def __init__(self, name):
        self.name = name

    def _repr_mimebundle_(self, **_):
        from course_lib.checks.piece import find

        odd = [
            {"array": DEEP, "dtype": 3, "shape": 5},
            {"array": "AAAA", "dtype": "float64", "shape": {"a": 1}},
            {"array": "", "dtype": [], "shape": [NAN]},
            {"fact": DEEP},
            {"other": {"x": DEEP}},
            {"array": None, "fact": None},
        ]
        names = ["mean", "var", "y", "x_hat", "dx", "dgamma", "gamma", "beta", "dtype of mean", "inputs changed"]
        entries = [
            {"seen": {n: odd[(i + k) % 6] for k, n in enumerate(names)}, "error": None, "printed": "", "digest": DEEP}
            for i in range(4)
        ]
        entries.append({"seen": {}, "error": {"kind": DEEP, "message": {"a": NAN}, "line": 3}, "printed": "\ud800"})
        entries.append({"seen": {}, "error": {"kind": "\udfff", "message": "\ud800<script>"}, "printed": "\ud800"})
        entries.append({"seen": {}, "error": {}, "printed": "p" * 100000})
        entries.append(NAN)
        scenarios = {s.name: entries[i % len(entries)] for i, s in enumerate(find(self.name).scenarios)}
        return {"text/plain": "10.0", checks.OBSERVATIONS: {"scenarios": scenarios, "piece": NAN, "seed": "0"}}


def check(name, impl):
    return Odd(name)


batch_stats = None
