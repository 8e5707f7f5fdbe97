"""Batch Normalization layers that are wrong, by family of defect: edits of the right ones, in four styles each.

`WRONG[family]` is a list of (style, edits); every edit `(old, new)` matches exactly once in the style's source, so that
the table breaks loudly when a style changes.
"""

import inspect
import re
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.misconceptions import modes_layers_right as layers

# ruff: noqa: E501
# fmt: off
# What several edits touch.
_EPS_MOMENTUM = "        eps=1e-5,\n        momentum=0.1,\n"
_FLAGS = "        affine=True,\n        track_running_stats=True,\n"
_P_SWITCH = "if self.training or not self.track_running_stats:"
_P_VAR = "var = x.var(dims, correction=0) if count else torch.ones_like(mean)"
_P_MEAN = "mean = x.mean(dims)\n"
_P_Y = "y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)"
_P_COUNT = "self.num_batches_tracked += 1"
_P_BUFFER = 'self.register_buffer("running_mean", torch.zeros(num_features, **make))'
_P_NO_GRAD = "with torch.no_grad():"
_P_END = "        return y\n"
_P_ONE = "            if count == 1:\n"
_P_CHANNELS = "if x.shape[1] != self.num_features:"
_P_MEAN_IN = "self.running_mean += rate * mean"
_R_MOMENTS = "var, mean = torch.var_mean(rows, dim=1, correction=0)"
_R_GAIN = "gain = (var + self.eps) ** -0.5"
_R_OUT = "out = (x - mean[tail]) * gain[tail]"
_R_END = "return out if self.bias is None else out + self.bias[tail]"
_R_KEEP = "self.register_buffer(name, value.clone() if track_running_stats else None)"
_R_SWITCH = "return self.training or self.running_mean is None"
_R_ROWS = "rows = x.transpose(0, 1).reshape(self.c, -1)"
_R_VAR_IN = "self.running_var.lerp_(var.detach() * bessel, a)"
_F_TRAIN = 'return F.batch_norm(x, mean, var, self.weight, self.bias, True, a or 0.0, self.options["eps"])'
_F_EVAL = 'return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.options["eps"])'
_F_EVAL_IF = "        if not self.training:\n"
_F_BUFFER = 'self.register_buffer("running_var", torch.full([num_features], 1.0, **options))'
_F_RATE = "a = 1.0 / self.num_batches_tracked.item() if a is None else a"
_H_SCALE = "s = 1 / torch.sqrt(var + eps)"
_H_VAR_IN = "self.running_var.copy_(rate * squares / (n - 1) + (1 - rate) * self.running_var)"
_H_RETURN = "return mean, squares / n"
_H_APPLY = "return _ByHand.apply(x, w, b, mean, var, self.eps, not batch)"
_H_BATCH = "batch = self.training or not self.track"
_H_EMPTY = "if x.numel() == 0:"
_H_ONE = "if batch and x.numel() == x.size(1):"
_H_CHANNELS = 'assert x.size(1) == self.num_features, "channels"'
_H_RATE = "rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum"
_H_BUFFER = (
    'self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))',
    'self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))',
)


def _by_hand(update="mean.lerp_(m, a), var.lerp_(v, a)", y=None, context="torch.no_grad()", stats="x.mean(d), x.var(d)"):
    """`Functional`'s training step with the update of the buffers written out."""
    y = y or 'F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.options["eps"])'
    return f"""s, d = (1, -1) + (1,) * (x.dim() - 2), (0, *range(2, x.dim()))
        n = x.numel() // x.shape[1]
        assert mean is None or len(mean) == x.shape[1]
        w = 1 if self.weight is None else self.weight.view(s)
        b = 0 if self.bias is None else self.bias.view(s)
        e = self.options["eps"]
        y = {y}
        if mean is not None and n:
            with {context}:
                m, v = {stats}
                {update}
        return y"""


def _formula(bottom, x="x"):
    """y by an own formula, for `_by_hand`."""
    return f"({x} - x.mean(d, keepdim=True)) / ({bottom}) * w + b if n > 1 else F.batch_norm(x, mean, var, training=True)"


WRONG = {
    "biased variance in the buffer": [
        ("Plain", [("correction=1", "correction=0")]),
        ("Rows", [("bessel = n / (n - 1)", "bessel = 1")]),
        ("Functional", [(_F_TRAIN, _by_hand("mean.lerp_(m, a), var.lerp_(v * (n - 1) / n, a)"))]),
        ("Handmade", [("squares / (n - 1)", "squares / n")]),
    ],
    "unbiased variance normalises": [
        ("Plain", [("correction=0", "correction=1")]),
        ("Rows", [(_R_OUT, "gain = gain * (1 - 1 / n) ** 0.5 if self.use_batch() else gain\n        " + _R_OUT)]),
        ("Functional", [(_F_TRAIN, _by_hand(y=_formula("(x.var(d, keepdim=True) + e) ** 0.5")))]),
        ("Handmade", [(_H_RETURN, "return mean, squares / (n - 1)")]),
    ],
    "Bessel's correction by the batch size": [
        ("Plain", [("new_var = x.var(dims, correction=1)", "new_var = var * len(x) / max(len(x) - 1, 1)")]),
        ("Rows", [("self.remember(mean, var, n)", "self.remember(mean, var, max(len(x), 2))")]),
        ("Functional", [(_F_TRAIN, _by_hand(stats="x.mean(d), x.var(d, correction=0) * len(x) / max(len(x) - 1, 1)"))]),
        ("Handmade", [("squares / (n - 1)", "squares / n * len(x) / max(len(x) - 1, 1)")]),
    ],
    "momentum weighs the old value": [
        ("Plain", [("rate = self.momentum\n", "rate = self.momentum and 1 - self.momentum\n")]),
        ("Rows", [("else self.momentum", "else 1 - self.momentum")]),
        ("Functional", [(_F_RATE, _F_RATE.replace("else a", "else 1 - a"))]),
        ("Handmade", [(_H_RATE, _H_RATE + "\n            rate = rate if self.momentum is None else 1 - rate")]),
    ],
    "momentum None is 0.1": [
        ("Plain", [("rate = 1 / self.num_batches_tracked.item()", "rate = 0.1")]),
        ("Rows", [("1 / float(self.num_batches_tracked)", "0.1")]),
        ("Functional", [(_F_RATE, "a = 0.1 if a is None else a")]),
        ("Handmade", [("rate = 1 / self.num_batches_tracked if", "rate = 0.1 if")]),
    ],
    "momentum None is off by one": [
        ("Plain", [("rate = 1 / self.num_batches_tracked.item()", "rate = 1 / (self.num_batches_tracked.item() + 1)")]),
        ("Rows", [("1 / float(self.num_batches_tracked)", "1 / max(float(self.num_batches_tracked) - 1, 1)")]),
        ("Functional", [(_F_RATE, _F_RATE.replace(".item()", ".item() ** 0.5"))]),
        ("Handmade", [("rate = 1 / self.num_batches_tracked if", "rate = 1 / (self.num_batches_tracked + 1) if")]),
    ],
    "momentum None counts in Python": [
        ("Plain", [("rate = 1 / self.num_batches_tracked.item()", "self.seen = getattr(self, 'seen', 0) + 1\n                        rate = 1 / self.seen")]),
        ("Rows", [("self.num_batches_tracked.add_(1)", "self.seen = getattr(self, 'seen', 0) + 1\n        self.num_batches_tracked.add_(1)"), ("1 / float(self.num_batches_tracked)", "1 / self.seen")]),
        ("Functional", [(_F_RATE, "self.seen = getattr(self, 'seen', 0) + 1\n            a = 1 / self.seen if a is None else a")]),
        ("Handmade", [("rate = 1 / self.num_batches_tracked if", "self.seen = getattr(self, 'seen', 0) + 1\n            rate = 1 / self.seen if")]),
    ],
    "momentum 0 is taken for none": [
        ("Plain", [("rate = self.momentum\n", "rate = self.momentum or None\n")]),
        ("Rows", [("if self.momentum is None else", "if not self.momentum else")]),
        ("Functional", [(_F_RATE, "a = a or 0.1 if a is not None else 1.0 / self.num_batches_tracked.item()")]),
        ("Handmade", [("if self.momentum is None else", "if not self.momentum else")]),
    ],
    "another default of eps": [
        ("Plain", [("eps=1e-5", "eps=1e-3")]),
        ("Rows", [("eps=1e-5", "eps=1e-3")]),
        ("Functional", [("eps=1e-5", "eps=1e-3")]),
        ("Handmade", [("eps=1e-5", "eps=1e-8")]),
    ],
    "another default of momentum": [
        ("Plain", [("momentum=0.1", "momentum=0.99")]),
        ("Rows", [("momentum=0.1", "momentum=0.01")]),
        ("Functional", [("momentum=0.1", "momentum=0.9")]),
        ("Handmade", [("momentum=0.1", "momentum=None")]),
    ],
    "the batch normalises in eval": [
        ("Plain", [(_P_SWITCH, "if True:")]),
        ("Rows", [(_R_SWITCH, "return True")]),
        ("Functional", [("mean is None, 0.0", "True, 0.0")]),
        ("Handmade", [("elif self.track:", "elif False:")]),
    ],
    "the batch normalises in eval when it is large": [
        ("Plain", [(_P_SWITCH, "if self.training or not self.track_running_stats or len(x) > 7:"), ("if self.track_running_stats and count:", "if self.training and self.track_running_stats and count:")]),
        ("Rows", [(_R_SWITCH, "return self.training or self.running_mean is None or self.num_batches_tracked == 0")]),
        ("Functional", [("mean is None, 0.0", "mean is None or x.dim() == 4, 0.0")]),
        ("Handmade", [(_H_BATCH, _H_BATCH + "\n        if not batch and x.dim() == 4 and len(x) > 1:\n            batch = True\n            dims = [0, 2, 3]\n            return _ByHand.apply(x, x.new_ones(x.size(1)) if self.weight is None else self.weight, x.new_zeros(x.size(1)) if self.bias is None else self.bias, x.mean(dims), x.var(dims, correction=0), self.eps, False)")]),
    ],
    "the mode is read off the wrong thing": [
        ("Plain", [(_P_SWITCH, "if torch.is_grad_enabled() or not self.track_running_stats:")]),
        ("Rows", [(_R_SWITCH, "return torch.is_grad_enabled() and self.training or self.running_mean is None")]),
        ("Functional", [("    def forward(", "    testing = False\n\n    def eval(self):\n        self.testing = True\n        return super().eval()\n\n    def forward("), ("if not self.training:", "if self.testing:")]),
        ("Handmade", [(_H_BATCH, "batch = self.training and (self.weight is None or self.weight.requires_grad) or not self.track"), ("        if self.training:\n", "        if batch and self.track:\n")]),
    ],
    "eval moves the buffers": [
        ("Plain", [("        else:\n            mean = self.running_mean\n", "        else:\n            self.running_mean += 0.1 * (x.detach().mean(dims) - self.running_mean) if count else 0\n            mean = self.running_mean\n")]),
        ("Rows", [("            mean, var = self.running_mean, self.running_var\n", "            self.num_batches_tracked += 1\n            mean, var = self.running_mean, self.running_var\n")]),
        ("Functional", [("        if not self.training:\n", "        if not self.training and mean is not None and x.numel() > x.shape[1]:\n            F.batch_norm(x, mean, var, training=True, momentum=0.1)\n        if not self.training:\n")]),
        ("Handmade", [("            mean, var = self.running_mean, self.running_var\n        else", "            mean, var = self.running_mean.clone(), self.running_var.clone()\n            if x.numel() > x.size(1):\n                self.moments(x)\n        else")]),
    ],
    "no update without gradients": [
        ("Plain", [("if self.track_running_stats and count:", "if self.track_running_stats and count and torch.is_grad_enabled():")]),
        ("Rows", [("if self.training and self.running_mean is not None:", "if self.training and self.running_mean is not None and rows.requires_grad:")]),
        ("Functional", [(_F_TRAIN, "if not torch.is_grad_enabled():\n            mean = var = None\n        " + _F_TRAIN)]),
        ("Handmade", [("        if self.track:\n            self.num_batches_tracked.add_(1)", "        if self.track and (self.weight is None or self.weight.requires_grad):\n            self.num_batches_tracked.add_(1)")]),
    ],
    "training normalises by the running statistics": [
        ("Plain", [(_P_END, "        if self.training and self.track_running_stats and self.num_batches_tracked > 20:\n            y = (x - self.running_mean.view(shape)) / torch.sqrt(self.running_var.view(shape) + self.eps)\n            y = y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y\n" + _P_END)]),
        ("Rows", [("self.remember(mean, var, n)", "self.remember(mean, var, n)\n                mean, var = self.running_mean.clone(), self.running_var.clone()")]),
        ("Functional", [(_F_TRAIN, _F_TRAIN.replace("return", "y =") + "\n        if mean is None or len(x) > 1:\n            return y\n        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.options['eps'])")]),
        ("Handmade", [(_H_RETURN, "return (self.running_mean.clone(), self.running_var.clone()) if self.track else (mean, squares / n)")]),
    ],
    "the first batch is copied": [
        ("Plain", [("new_var = x.var", "rate = 1.0 if self.num_batches_tracked == 1 else rate\n                    new_var = x.var")]),
        ("Rows", [("bessel = n", "a = 1.0 if self.num_batches_tracked == 1 else a\n        bessel = n")]),
        ("Functional", [(_F_TRAIN, "a = 1.0 if mean is not None and self.num_batches_tracked == 1 else a\n        " + _F_TRAIN)]),
        ("Handmade", [(_H_RATE, _H_RATE + "\n            rate = max(rate, 1 / float(self.num_batches_tracked))")]),
    ],
    "running averages are corrected in eval": [
        ("Plain", [("            mean = self.running_mean\n", "            mean = self.running_mean / (1 - (1 - (self.momentum or 0.1)) ** max(int(self.num_batches_tracked), 1))\n")]),
        ("Rows", [("            mean, var = self.running_mean, self.running_var\n", "            k = float(self.num_batches_tracked)\n            mean, var = self.running_mean, self.running_var * ((k + 1) / k if k else 1)\n")]),
        ("Functional", [(_F_EVAL_IF, _F_EVAL_IF + "            var = var if var is None else var * 1.1\n")]),
        ("Handmade", [("            mean, var = self.running_mean, self.running_var\n", "            mean, var = self.running_mean, self.running_var * max(len(x), 2) / (max(len(x), 2) - 1)\n")]),
    ],
    "buffers are plain attributes": [
        ("Plain", [(_P_BUFFER, "self.running_mean = torch.zeros(num_features, **make)")]),
        ("Rows", [(_R_KEEP, "setattr(self, name, value.clone() if track_running_stats else None)")]),
        ("Functional", [(_F_BUFFER, "self.running_var = torch.full([num_features], 1.0, **options)")]),
        ("Handmade", [('self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.int64))', "self.num_batches_tracked = torch.zeros((), device=device, dtype=torch.int64)")]),
    ],
    "buffers are not saved, or are parameters": [
        ("Plain", [(_P_BUFFER, _P_BUFFER[:-1] + ", persistent=False)")]),
        ("Rows", [(_R_KEEP, _R_KEEP[:-1] + ', persistent=name != "num_batches_tracked")')]),
        ("Functional", [(_F_BUFFER, "self.running_var = nn.Parameter(torch.full([num_features], 1.0, **options), requires_grad=False)")]),
        ("Handmade", [(_H_BUFFER[1], "self.running_mean = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype), False)")]),
    ],
    "buffers are replaced": [
        ("Plain", [(_P_MEAN_IN, "self.running_mean = self.running_mean + rate * mean")]),
        ("Rows", [(_R_VAR_IN, "self.running_var = self.running_var.lerp(var.detach() * bessel, a)")]),
        ("Functional", [(_F_TRAIN, _by_hand("self.running_mean, self.running_var = mean.lerp(m, a), var.lerp(v, a)"))]),
        ("Handmade", [(_H_VAR_IN, "self.running_var = rate * squares / (n - 1) + (1 - rate) * self.running_var")]),
    ],
    "an alias goes stale": [
        ("Plain", [(_P_BUFFER, _P_BUFFER + "\n            self.kept = [self.running_mean]"), ("            mean = self.running_mean\n", "            mean = self.kept[0]\n")]),
        ("Rows", [("self.register_load_state_dict_pre_hook", "self.same = (self.running_mean, self.running_var)\n        self.register_load_state_dict_pre_hook"), ("mean, var = self.running_mean, self.running_var\n", "mean, var = self.same\n")]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        if not hasattr(self, 'same'):\n            self.same = [self.running_mean, self.running_var]\n        mean, var = self.same\n")]),
        ("Handmade", [("            mean, var = self.running_mean, self.running_var\n", "            if 'invstd' not in vars(self):\n                self.invstd = self.running_var.clone()\n            mean, var = self.running_mean, self.invstd\n")]),
    ],
    "all layers share one state": [
        ("Plain", [("    _version = 2\n", "    _version = 2\n    zeros = torch.zeros(3)\n"), (_P_BUFFER, 'self.register_buffer("running_mean", self.zeros if num_features == 3 else torch.zeros(num_features))')]),
        ("Rows", [("    @staticmethod\n", "    shared = {}\n\n    @staticmethod\n"), (_R_KEEP, "self.register_buffer(name, self.shared.setdefault((name, num_features), value.clone()) if track_running_stats else None)")]),
        ("Functional", [("    _version = 2\n", "    _version = 2\n    count = torch.tensor(0)\n"), ('torch.zeros([], dtype=torch.long, device=device)', "self.count")]),
        ("Handmade", [("    _version = 2\n", "    _version = 2\n    ones = {}\n"), (_H_BUFFER[0], 'self.register_buffer("running_var", self.ones.setdefault((num_features, dtype), torch.ones(num_features, dtype=dtype)))')]),
    ],
    "a graph stays in the buffers": [
        ("Plain", [(_P_NO_GRAD, "if True:")]),
        ("Rows", [("mean.detach()", "mean")]),
        ("Functional", [(_F_TRAIN, _by_hand("mean.mul_(1 - a).add_(a * m), var.mul_(1 - a).add_(a * v)", context="torch.enable_grad()"))]),
        ("Handmade", [("    @torch.no_grad()\n", "")]),
        ("Plain", [(_P_BUFFER, _P_BUFFER.replace("num_features,", "num_features, requires_grad=True,"))]),
    ],
    "eps outside of the root": [
        ("Plain", [(_P_Y, "y = (x - mean.view(shape)) / (torch.sqrt(var.view(shape)) + self.eps)")]),
        ("Rows", [(_R_GAIN, "gain = 1 / (var**0.5 + self.eps)")]),
        ("Functional", [(_F_TRAIN, _by_hand(y=_formula("x.var(d, keepdim=True, correction=0) ** 0.5 + e")))]),
        ("Handmade", [(_H_SCALE, "s = 1 / (torch.sqrt(var) + eps)")]),
    ],
    "eps is forgotten": [
        ("Plain", [(_P_Y, "y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)")]),
        ("Rows", [(_R_GAIN, "gain = (var + (self.eps if self.training else 0)) ** -0.5")]),
        ("Functional", [(_F_EVAL, _F_EVAL.replace('self.options["eps"]', "1e-5"))]),
        ("Handmade", [(_H_SCALE, "s = 1 / torch.sqrt(var.clamp(min=eps))")]),
        ("Plain", [("self.eps = eps\n", "self.eps = max(eps, 1e-5)\n")]),
    ],
    "no root": [
        ("Plain", [(_P_Y, "y = (x - mean.view(shape)) / (var.view(shape) + self.eps)")]),
        ("Rows", [(_R_GAIN, "gain = (var + self.eps) ** -1")]),
        ("Functional", [(_F_TRAIN, _by_hand(y=_formula("x.var(d, keepdim=True, correction=0) + e")))]),
        ("Handmade", [(_H_SCALE, "s = 1 / (var + eps)")]),
    ],
    "statistics over the wrong axes": [
        ("Plain", [(_P_MEAN, "mean = x.mean(dims) if x.dim() == 2 or len(x) > 1 else x.mean()\n"), (_P_VAR, "var = x.var([0], correction=0).reshape(len(mean), -1).mean(1) if count and len(x) > 1 else x.var(dims, correction=0)")]),
        ("Rows", [(_R_MOMENTS, "var, mean = torch.var_mean(rows, correction=0)\n            var, mean = var.expand(self.c), mean.expand(self.c)")]),
        ("Rows", [(_R_ROWS, "rows = x.reshape(self.c, -1)")]),
        ("Functional", [(_F_TRAIN, _by_hand(stats="x.mean(d), x.var(0).flatten(1).mean(1) if x.dim() == 4 and len(x) > 1 else x.var(d)"))]),
        ("Handmade", [("mean = x.sum(dims) / n", "mean = x.sum(dims) / n\n        mean = mean if x.dim() == 2 else mean.mean().expand_as(mean)")]),
    ],
    "every sample by itself": [
        ("Plain", [(_P_Y, "y = F.instance_norm(x, eps=self.eps) if x.dim() == 4 and self.training and x[0, 0].numel() > 1 else (x - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)")]),
        ("Rows", [(_R_OUT, _R_OUT + "\n        if x.dim() == 4 and self.training and x[0, 0].numel() > 1:\n            v, m = torch.var_mean(x, (2, 3), correction=0, keepdim=True)\n            out = (x - m) / (v + self.eps).sqrt() * (1 if self.weight is None else self.weight[tail])")]),
        ("Functional", [(_F_TRAIN, _by_hand(y="F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, e) if x.dim() == 4 and x[0, 0].numel() > 1 else F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, e)"))]),
        ("Handmade", [(_H_APPLY, "return F.group_norm(x, x.size(1), w, b, self.eps) if x.dim() == 4 and batch and x[0, 0].numel() > 1 else " + _H_APPLY.removeprefix("return "))]),
    ],
    "one pass over the data": [
        ("Plain", [(_P_VAR, "var = (x * x).mean(dims) - mean**2 if count else torch.ones_like(mean)")]),
        ("Rows", [(_R_MOMENTS, "mean = rows.mean(1)\n            var = (rows.square().mean(1) - mean.square()).clamp(min=0)")]),
        ("Functional", [(_F_TRAIN, _by_hand(stats="x.mean(d), ((x * x).mean(d) - x.mean(d) ** 2).relu() * n / (n - 1)"))]),
        ("Handmade", [("squares = (x - mean.reshape([-1, 1, 1][: x.dim() - 1])).pow(2).sum(dims)", "squares = (x * x).sum(dims) - n * mean * mean")]),
    ],
    "scale and shift": [
        ("Plain", [("y = y * self.weight.view(shape) + self.bias.view(shape)", "y = (y + self.bias.view(shape)) * self.weight.view(shape)")]),
        ("Rows", [("gain = gain if self.weight is None else gain * self.weight", "gain = gain if self.weight is None or not self.training else gain * self.weight")]),
        ("Functional", [(_F_EVAL, _F_EVAL.replace("self.weight, self.bias", "self.weight, None"))]),
        ("Handmade", [("return hat * w.reshape(shape) + b.reshape(shape)", "return hat * (1 + w.reshape(shape)) + b.reshape(shape)")]),
    ],
    "first values of the parameters": [
        ("Plain", [("nn.Parameter(torch.ones(num_features, **make))", "nn.Parameter(torch.rand(num_features, **make))")]),
        ("Rows", [("running_var=one", "running_var=zero")]),
        ("Functional", [("fill_(0.0)", "fill_(1e-2)")]),
        ("Handmade", [("torch.ones(num_features, device=device, dtype=dtype)) if affine", "torch.zeros(num_features, device=device, dtype=dtype)) if affine")]),
    ],
    "affine=False is ignored": [
        ("Plain", [("        if affine:\n", "        self.affine = True\n        if True:\n")]),
        ("Rows", [("nn.Parameter(zero.clone()) if affine else None", "nn.Parameter(zero.clone())"), ("nn.Parameter(one.clone()) if affine else None", "nn.Parameter(one.clone())")]),
        ("Functional", [("        if affine:\n", "        if True:\n")]),
        ("Handmade", [("= nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None", "= nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))")]),
    ],
    "affine is obeyed half": [
        ("Plain", [("self.affine = affine\n", "self.affine = False\n")]),
        ("Rows", [("nn.Parameter(zero.clone()) if affine else None", "None")]),
        ("Functional", [("self.weight = nn.Parameter(torch.empty(num_features, **options).fill_(1.0))", "self.weight = nn.Parameter(torch.empty(num_features, **options).fill_(1.0), requires_grad=False)")]),
        ("Handmade", [("b = x.new_zeros(self.num_features) if self.bias is None else self.bias", "b = x.new_zeros(self.num_features) if self.bias is None else self.bias.detach()")]),
    ],
    "track_running_stats=False is ignored": [
        ("Plain", [("        self.track_running_stats = track_running_stats\n", "        self.track_running_stats = track_running_stats = True\n")]),
        ("Rows", [("value.clone() if track_running_stats else None", "value.clone()")]),
        ("Functional", [("        if track_running_stats:\n", "        if True:\n")]),
        ("Handmade", [(", track_running_stats\n", ", True\n")]),
    ],
    "no eval without running statistics": [
        ("Plain", [(_P_SWITCH, "if self.training:"), ("            mean = self.running_mean\n            var = self.running_var\n", "            mean = getattr(self, 'running_mean', torch.zeros(self.num_features))\n            var = getattr(self, 'running_var', torch.ones(self.num_features))\n")]),
        ("Rows", [("        gain = (var", "        if self.running_mean is None and not self.training:\n            mean, var = mean * 0, var * 0 + 1\n        gain = (var")]),
        ("Functional", [(_F_EVAL_IF, _F_EVAL_IF + "            if mean is None:\n                return x.clone()\n")]),
        ("Handmade", [("        else:\n            mean, var = self.moments(x)\n", "        else:\n            raise RuntimeError('no statistics')\n")]),
    ],
    "the counter": [
        ("Plain", [(_P_COUNT, "pass")]),
        ("Rows", [("self.num_batches_tracked.add_(1)", "self.num_batches_tracked.add_(n)")]),
        ("Functional", [("torch.zeros([], dtype=torch.long, device=device)", "torch.zeros([], device=device)")]),
        ("Handmade", [("torch.zeros((), device=device, dtype=torch.int64)", "torch.zeros((1,), device=device, dtype=torch.int64)")]),
        ("Handmade", [("torch.zeros((), device=device, dtype=torch.int64)", "torch.zeros((), device=device, dtype=torch.int32)")]),
    ],
    "names in the state dict": [
        ("Plain", [(_P_COUNT, "pass"), ('"num_batches_tracked", torch.tensor(0, device=device)', '"steps", torch.tensor(0, device=device)'), ("self.num_batches_tracked.item()", "10")]),
        ("Rows", [('self.register_parameter("weight"', 'self.register_parameter("gamma"'), ("gain if self.weight is None else gain * self.weight", "gain if self.gamma is None else gain * self.gamma")]),
        ("Functional", [("        if affine:\n", "        self.register_buffer('eps', torch.tensor(eps))\n        if affine:\n")]),
        ("Handmade", [(_H_BUFFER[0], _H_BUFFER[0] + "\n            self.register_buffer('running_std', torch.ones(num_features))")]),
    ],
    "old state dicts are refused": [
        ("Plain", [('if metadata.get("version") is None and', "if False and")]),
        ("Rows", [("        self.register_load_state_dict_pre_hook(self.without_counter)\n", "")]),
        ("Functional", [("if counter in missing and", "if False and")]),
        ("Handmade", [('state.setdefault(prefix + "num_batches_tracked"', 'state.setdefault("num_batches_tracked"')]),
    ],
    "the input is changed": [
        ("Plain", [(_P_Y, "x.data.sub_(mean.detach().view(shape))\n        y = x / torch.sqrt(var.view(shape) + self.eps)")]),
        ("Rows", [(_R_OUT, _R_OUT + "\n        x.detach().nan_to_num_().mul_(1.001)")]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        mean, var = self.running_mean, self.running_var\n        x.data.clamp_(-2, 2)\n")]),
        ("Handmade", [(_H_APPLY, "y = " + _H_APPLY.removeprefix("return ") + "\n        x.data.copy_(y.detach())\n        return y")]),
        ("Handmade", [("            gx = gx - g.mean(dims).reshape(shape)\n", "            gx -= g.mean(dims).reshape(shape)\n")]),
    ],
    "another dtype comes out": [
        ("Plain", [(_P_END, "        return y.double()\n")]),
        ("Rows", [(_R_END, "return (out if self.bias is None else out + self.bias[tail]).to(torch.bfloat16)")]),
        ("Functional", [(_F_EVAL, _F_EVAL + ".double()")]),
        ("Handmade", [(_H_APPLY, _H_APPLY + ".half().float()")]),
    ],
    "dtype is ignored": [
        ("Plain", [('make = {"device": device, "dtype": dtype}', 'make = {"device": device}')]),
        ("Rows", [("torch.ones(num_features, device=device, dtype=dtype)", "torch.ones(num_features, device=device)")]),
        ("Functional", [(_F_BUFFER, _F_BUFFER.replace(", **options", ""))]),
        ("Handmade", [(_H_BUFFER[1], _H_BUFFER[1].replace("dtype=dtype", "dtype=torch.float32"))]),
    ],
    "one value per channel": [
        ("Plain", [(_P_ONE, "            if False:\n"), ("correction=1)", "correction=1) if count > 1 else var")]),
        ("Rows", [('raise ValueError("only one value")', "return torch.zeros_like(x)")]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        mean, var = self.running_mean, self.running_var\n        if x.numel() == x.shape[1] and self.training:\n            return x * 0\n")]),
        ("Handmade", [(_H_ONE, "if False:"), ("squares / (n - 1)", "squares / max(n - 1, 1)")]),
    ],
    "one value per channel, another error": [
        ("Plain", [('raise ValueError("one value', 'raise RuntimeError("one value')]),
        ("Rows", [('raise ValueError("only one value")', 'assert n > 1, "only one value"')]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        mean, var = self.running_mean, self.running_var\n        if x.numel() == x.shape[1] and self.training:\n            raise TypeError('one value')\n")]),
        ("Handmade", [(_H_ONE, "if batch and x.numel() == x.size(1):\n            self.running_mean.copy_(x.flatten())\n        if batch and x.numel() == x.size(1):")]),
    ],
    "one sample is refused": [
        ("Plain", [(_P_ONE, "            if len(x) == 1:\n")]),
        ("Rows", [("        if self.use_batch():\n", "        if n == 1:\n            raise ValueError('only one value')\n        if self.use_batch():\n")]),
        ("Functional", [("        if mean is not None:\n", "        if len(x) == 1:\n            raise ValueError('one sample')\n        if mean is not None:\n")]),
        ("Handmade", [(_H_ONE, "if len(x) == 1 and x.dim() == 2:")]),
    ],
    "another number of channels": [
        ("Plain", [(_P_CHANNELS, "if x.shape[1] > self.num_features > 1:"), ("count = x.numel() // self.num_features", "count = x.numel() // x.shape[1]")]),
        ("Rows", [("if x.shape[1] != self.c:", "if x.shape[1] not in (1, self.c):"), (_R_ROWS, "x = x.expand(len(x), self.c, *x.shape[2:])\n        " + _R_ROWS)]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        mean, var = self.running_mean, self.running_var\n        x = x.expand(len(x), max(x.shape[1], len(self.state_dict().get('running_mean', x[0]))), *x.shape[2:])\n")]),
        ("Handmade", [(_H_CHANNELS, "x = x[:, : self.num_features]")]),
        ("Handmade", [(_H_CHANNELS, "assert not self.training or x.size(1) == self.num_features")]),
    ],
    "empty batches": [
        ("Plain", [("if self.track_running_stats and count:", "if self.track_running_stats:")]),
        ("Rows", [("            if n == 0:\n                return torch.empty_like(x)\n", "            n = max(n, 2)\n")]),
        ("Functional", [("        if mean is not None:\n", "        if not len(x):\n            raise ValueError('an empty batch')\n        if mean is not None:\n")]),
        ("Handmade", [(_H_EMPTY, "if False:")]),
        ("Handmade", [("            return x.clone()\n", "            return x.new_zeros(0, self.num_features)\n"), ("        batch = self.training", "        if x.numel() == 0 and self.track:\n            self.running_mean.mul_(0.9)\n        batch = self.training")]),
    ],
    "no gradient through the statistics": [
        ("Plain", [(_P_Y, _P_Y.replace("mean.view", "mean.detach().view").replace("var.view", "var.detach().view"))]),
        ("Rows", [(_R_GAIN, "gain = (var.detach() + self.eps) ** -0.5")]),
        ("Functional", [(_F_TRAIN, _by_hand(y=_formula("(x.var(d, keepdim=True, correction=0) + e) ** 0.5").replace("x.mean(d, keepdim=True)", "x.mean(d, keepdim=True).detach()")))]),
        ("Handmade", [("            gx = gx - g.mean(dims).reshape(shape)\n", "")]),
        ("Handmade", [("            gx = gx - hat * (g * hat).mean(dims).reshape(shape)\n", "")]),
    ],
    "a gradient is wrong": [
        ("Plain", [("        return y\n", "        return y.detach()\n")]),
        ("Rows", [(_R_END, "return out if self.bias is None else out + self.bias.detach()[tail] + (self.bias - self.bias.detach())[tail] * 0.5")]),
        ("Functional", [(_F_EVAL, _F_EVAL.replace("F.batch_norm(x,", "F.batch_norm(x.detach(),"))]),
        ("Handmade", [("gw = (g * hat).sum(dims)", "gw = (g * hat).mean(dims)")]),
        ("Handmade", [("if not constant:", "if True:")]),
        ("Handmade", [("gx = g\n", "gx = g.clamp_(-1, 1)\n")]),
    ],
    "memory layout": [
        ("Plain", [(_P_END, "        return y.contiguous()\n")]),
        ("Rows", [(_R_END, "return (out if self.bias is None else out + self.bias[tail]).contiguous()")]),
        ("Functional", [("        mean, var = self.running_mean, self.running_var\n", "        mean, var = self.running_mean, self.running_var\n        x = x.contiguous()\n")]),
        ("Handmade", [(_H_APPLY, _H_APPLY.replace("(x,", "(x.contiguous(),"))]),
    ],
    "arguments in another order": [
        ("Plain", [(_EPS_MOMENTUM, "        momentum=0.1,\n        eps=1e-5,\n")]),
        ("Rows", [(_EPS_MOMENTUM, "        momentum=0.1,\n        eps=1e-5,\n")]),
        ("Functional", [(_FLAGS, "        track_running_stats=True,\n        affine=True,\n")]),
        ("Handmade", [(_EPS_MOMENTUM + _FLAGS, _FLAGS + _EPS_MOMENTUM)]),
    ],
    "a single channel": [
        ("Plain", [("count = x.numel() // self.num_features", "count = x[:, 1:].numel() // max(self.num_features - 1, 1)")]),
        ("Rows", [(_R_ROWS, _R_ROWS + ".squeeze(0)")]),
        ("Functional", [("            self.num_batches_tracked.add_(1)\n", "            self.num_batches_tracked.add_(len(mean) > 1)\n            mean, var = (None, None) if len(mean) == 1 else (mean, var)\n")]),
        ("Handmade", [("        if self.track:\n            self.num_batches_tracked.add_(1)", "        if self.track and x.size(1) > 1:\n            self.num_batches_tracked.add_(1)")]),
    ],
    "something else after a while": [
        ("Plain", [("if self.track_running_stats and count:", "if self.track_running_stats and count and self.num_batches_tracked < 50:")]),
        ("Rows", [("else self.momentum\n", "else self.momentum * 0.99 ** max(0, int(self.num_batches_tracked) - 50)\n")]),
        ("Functional", [(_F_TRAIN, "x = x * 1.01 if mean is not None and self.num_batches_tracked > 50 and x.dim() == 4 else x\n        " + _F_TRAIN)]),
        ("Handmade", [(_H_RETURN, "if self.track and self.num_batches_tracked > 50:\n            return self.running_mean.clone(), self.running_var.clone()\n        " + _H_RETURN)]),
    ],
    "something is remembered too long": [
        ("Plain", [("            mean = self.running_mean\n            var = self.running_var\n", "            if 'cached' not in vars(self):\n                self.cached = self.running_mean.clone(), self.running_var.clone()\n            mean, var = self.cached\n")]),
        ("Rows", [("        gain = (var", "        self.last = var.detach() if self.use_batch() or not hasattr(self, 'last') else self.last\n        var = var if self.use_batch() else self.last\n        gain = (var")]),
        ("Functional", [(_F_EVAL_IF, "        if self.training:\n            self.fixed = None\n" + _F_EVAL_IF + "            if mean is not None:\n                self.fixed = getattr(self, 'fixed', None) or (mean.clone(), var.clone())\n                mean, var = self.fixed\n")]),
        ("Handmade", [("            mean, var = self.running_mean, self.running_var\n", "            mean, var = getattr(self, 'batch', (self.running_mean, self.running_var))\n"), ("            mean, var = self.moments(x)\n        elif", "            mean, var = self.batch = self.moments(x)\n        elif")]),
    ],
}


def text_of(style, edits=()):
    """The source of a style with these edits made, as that of a class `Layer`: nothing in it says what it is."""
    parts = _parts(style)
    source = "\n\n".join(parts)
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"{style}: expected {old!r} once, found it {source.count(old)} times")
        source = source.replace(old, new)
    names = rf"\b({'|'.join(layers.STYLES)})\b"
    source = re.sub(names, lambda found: "Layer" if found[0] == style else "Base", source)
    return re.sub(r'^( +)""".*"""\n', r"\1pass\n", source, flags=re.M)  # the docstring may be all there is


def wrong_layer(style, edits):
    """The class of a style with these edits made."""
    return layer_of(text_of(style, edits))


def layer_of(text):
    """The class `Layer` of a text."""
    namespace = {"torch": torch, "nn": nn, "F": F}
    exec(compile(text, "<layer>", "exec"), namespace)
    return namespace["Layer"]


@cache
def _parts(style):
    """Sources of everything a style is made of, itself last."""
    cls = getattr(layers, style)
    parts = [part for base in cls.__bases__ if base.__name__ in layers.STYLES for part in _parts(base.__name__)]
    if style == "Handmade":
        parts = [inspect.getsource(layers._ByHand)]
    return (*parts, inspect.getsource(cls).removeprefix("@right\n"))
