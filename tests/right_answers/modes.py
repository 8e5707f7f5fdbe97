"""Right answers to problem set 3, each in another style. `RIGHT[piece][style]` is an implementation.

They are honest, not clever: what the docstrings list beyond the contract (errors, half precision) many leave out.
"""

import contextlib
import copy
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib import modes, running_stats
from course_lib.running_stats import is_batchnorm
from tests.right_answers import collected

RIGHT, right = collected("modes")


# --- batch_norm_eval_backward ---------------------------------------------------------------------------------------


@right("batch_norm_eval_backward")
def slope_times_gradient(dy, x, running_mean, running_var, weight, eps=1e-5):
    shape = [1, -1] + [1] * (x.dim() - 2)
    dims = [d for d in range(x.dim()) if d != 1]
    std = torch.sqrt(running_var + eps)
    slope = weight / std
    x_hat = (x - running_mean.reshape(shape)) / std.reshape(shape)
    return dy * slope.reshape(shape), torch.sum(dy * x_hat, dims), torch.sum(dy, dims)


@right("batch_norm_eval_backward")
def channel_after_channel(dy, x, running_mean, running_var, weight, eps=1e-5):
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    for c in range(x.shape[1]):
        invstd = 1 / (running_var[c] + eps).sqrt()
        dx[:, c] = weight[c] * invstd * dy[:, c]
        dweight[c] = (dy[:, c] * (x[:, c] - running_mean[c]) * invstd).sum()
        dbias[c] = dy[:, c].sum()
    return dx, dweight, dbias


@right("batch_norm_eval_backward")
def asked_autograd(dy, x, running_mean, running_var, weight, eps=1e-5):
    with torch.enable_grad():
        leaf, w = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
        b = torch.zeros_like(w, requires_grad=True)
        last = leaf.movedim(1, -1)
        y = ((last - running_mean) / (running_var + eps).sqrt() * w + b).movedim(-1, 1)
        return torch.autograd.grad(y, (leaf, w, b), dy)


@right("batch_norm_eval_backward")
def einsum_over_positions(dy, x, running_mean, running_var, weight, eps=1e-5):
    d, v = dy.flatten(2) if dy.dim() > 2 else dy[..., None], x.flatten(2) if x.dim() > 2 else x[..., None]
    invstd = (running_var + eps) ** -0.5
    dx = torch.einsum("ncl,c,c->ncl", d, weight, invstd).reshape(x.shape)
    # Σ dy·x̂ from two sums: Σ dy·x and Σ dy.
    dbias = torch.einsum("ncl->c", d)
    return [dx, (torch.einsum("ncl,ncl->c", d, v) - running_mean * dbias) * invstd, dbias]


@right("batch_norm_eval_backward")
def through_numpy(dy, x, running_mean, running_var, weight, eps=1e-5):
    dy_, x_, mean, var, w = (t.detach().numpy() for t in (dy, x, running_mean, running_var, weight))
    axes = (0, *range(2, x_.ndim))
    wide = (slice(None),) + (None,) * (x_.ndim - 2)
    invstd = 1 / np.sqrt(var + np.asarray(eps, var.dtype))
    x_hat = (x_ - mean[wide]) * invstd[wide]
    results = dy_ * (w * invstd)[wide], (dy_ * x_hat).sum(axes), dy_.sum(axes)
    return tuple(torch.from_numpy(np.asarray(r, x_.dtype)) for r in results)


# --- BatchNormFunction ----------------------------------------------------------------------------------------------


@right("BatchNormFunction")
class KeepDims(Function):
    """Statistics keep their axes; None stands for what is missing, all the way."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        dims = [0, *range(2, x.dim())]
        shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
        use_batch = training or running_mean is None
        if use_batch:
            mean = x.mean(dims, keepdim=True)
            var = x.var(dims, correction=0, keepdim=True)
            if running_mean is not None:
                n = x.numel() / x.shape[1]
                running_mean += momentum * (mean.flatten() - running_mean)
                running_var += momentum * (var.flatten() * n / (n - 1) - running_var)
        else:
            mean, var = running_mean.reshape(shape), running_var.reshape(shape)
        invstd = 1 / torch.sqrt(var + eps)
        x_hat = (x - mean) * invstd
        ctx.save_for_backward(x_hat, invstd, weight)
        ctx.use_batch, ctx.dims, ctx.shape = use_batch, dims, shape
        y = x_hat.clone()
        if weight is not None:
            y *= weight.reshape(shape)
        if bias is not None:
            y += bias.reshape(shape)
        return y

    @staticmethod
    def backward(ctx, dy):
        x_hat, invstd, weight = ctx.saved_tensors
        dx_hat = dy if weight is None else dy * weight.reshape(ctx.shape)
        dx = dx_hat * invstd
        if ctx.use_batch:
            mean_d = dx_hat.mean(ctx.dims, keepdim=True)
            mean_dx = (dx_hat * x_hat).mean(ctx.dims, keepdim=True)
            dx = invstd * (dx_hat - mean_d - x_hat * mean_dx)
        dweight = (dy * x_hat).sum(ctx.dims) if ctx.needs_input_grad[1] else None
        dbias = dy.sum(ctx.dims) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None, None, None, None


@right("BatchNormFunction")
class AutogradInside(Function):
    """Backward builds the formula once more and asks autograd."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        ctx.by_batch, ctx.eps = training or running_mean is None, eps
        kept = (None, None) if ctx.by_batch else (running_mean.clone(), running_var.clone())
        ctx.save_for_backward(x, weight, bias, *kept)
        y = AutogradInside.formula(x, weight, bias, *kept, eps)
        if training and running_mean is not None:
            dims = (0, *range(2, x.dim()))
            running_mean.lerp_(x.mean(dims), momentum)
            running_var.lerp_(x.var(dims), momentum)
        return y

    @staticmethod
    def formula(x, weight, bias, mean, var, eps):
        last = x.movedim(1, -1)
        if mean is None:
            rows = last.reshape(-1, x.shape[1])
            mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
        y = (last - mean) / (var + eps) ** 0.5
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
        return y.movedim(-1, 1)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, *kept = ctx.saved_tensors
        given = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            y = AutogradInside.formula(*given, *kept, ctx.eps)
        leaves = [t for t in given if t is not None]
        found = iter(torch.autograd.grad(y, leaves, dy))
        return (*(None if t is None else next(found) for t in given), None, None, None, None, None)


@right("BatchNormFunction")
class RowsOfChannels(Function):
    """Everything as (C, n)."""

    @staticmethod
    def rows(x):
        return x.transpose(0, 1).reshape(x.shape[1], -1)

    @staticmethod
    def back(rows, like):
        return rows.reshape(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        r = RowsOfChannels.rows(x)
        n = r.shape[1]
        ctx.coupled = True
        if running_mean is not None and not training:
            ctx.coupled = False
            mean, var = running_mean, running_var
        else:
            mean = r.sum(1) / n
            var = (r - mean[:, None]).square().sum(1) / n
            if running_mean is not None:
                running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
                running_var.copy_((1 - momentum) * running_var + momentum * n / (n - 1) * var)
        w = torch.ones_like(mean) if weight is None else weight
        b = torch.zeros_like(mean) if bias is None else bias
        std = (var + eps).sqrt()
        hat = (r - mean[:, None]) / std[:, None]
        ctx.save_for_backward(hat, w / std)
        return RowsOfChannels.back(w[:, None] * hat + b[:, None], x)

    @staticmethod
    def backward(ctx, grad):
        hat, gain = ctx.saved_tensors
        g = RowsOfChannels.rows(grad)
        gw, gb = (g * hat).sum(-1), g.sum(-1)
        gx = g
        if ctx.coupled:
            gx = gx - (gb / g.shape[1])[:, None] - hat * (gw / g.shape[1])[:, None]
        gx = RowsOfChannels.back(gx * gain[:, None], grad)
        keep = ctx.needs_input_grad
        return gx, gw if keep[1] else None, gb if keep[2] else None, None, None, None, None, None


@right("BatchNormFunction")
class SetupContext(torch.autograd.Function):
    """The newer form, with the context set up apart; uses the student's own eval gradient."""

    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, training, momentum, eps):
        dims = tuple(d for d in range(x.ndim) if d != 1)
        view = (-1,) + (1,) * (x.ndim - 2)
        if training or running_mean is None:
            var, mean = torch.var_mean(x, dims, correction=0)
            if running_mean is not None:
                count = x[:, 0].numel()
                for buffer, new in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                    buffer.mul_(1 - momentum)
                    buffer.add_(new, alpha=momentum)
        else:
            mean, var = running_mean.clone(), running_var.clone()
        x_hat = (x - mean.view(view)) * torch.rsqrt(var + eps).view(view)
        y = x_hat if weight is None else x_hat * weight.view(view)
        y = y if bias is None else y + bias.view(view)
        SetupContext.last = mean, var
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, running_mean, _, training, _, eps = inputs
        ctx.batch, ctx.eps, ctx.has = training or running_mean is None, eps, (weight is not None, bias is not None)
        ctx.save_for_backward(x, x.new_ones(x.shape[1]) if weight is None else weight, *SetupContext.last)

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, var = ctx.saved_tensors
        dx, dw, db = slope_times_gradient(dy, x, mean, var, weight, ctx.eps)
        if ctx.batch:
            shape = (1, -1) + (1,) * (x.ndim - 2)
            n = x[:, 0].numel()
            x_hat = (x - mean.view(shape)) * (var + ctx.eps).rsqrt().view(shape)
            scale = (weight * (var + ctx.eps).rsqrt() / n).view(shape)
            dx = dx - scale * (db.view(shape) + x_hat * dw.view(shape))
        return dx, dw if ctx.has[0] else None, db if ctx.has[1] else None, *[None] * 5


# --- bn_modes -------------------------------------------------------------------------------------------------------


@right("bn_modes")
def loop_and_dict(model):
    result = {}
    for name, module in model.named_modules():
        if is_batchnorm(module):
            if module.training:
                result[name] = "train"
            else:
                result[name] = "eval"
    return result


@right("bn_modes")
def two_base_classes(model):
    kinds = (_BatchNorm, running_stats.BatchNorm)
    return {n: ("eval", "train")[m.training] for n, m in model.named_modules() if isinstance(m, kinds)}


@right("bn_modes")
def recursion(model):
    found, seen = {}, set()

    def visit(module, name):
        if id(module) in seen:
            return
        seen.add(id(module))
        if is_batchnorm(module):
            found[name] = {True: "train", False: "eval"}[module.training]
        for child, part in module.named_children():
            visit(part, f"{name}.{child}" if name else child)

    visit(model, "")
    return found


@right("bn_modes")
def filtered_pairs(model):
    layers = list(filter(lambda pair: is_batchnorm(pair[1]), model.named_modules()))
    words = ["train" if layer.training else "eval" for _, layer in layers]
    return dict(zip([name for name, _ in layers], words, strict=True))


# --- evaluating -----------------------------------------------------------------------------------------------------


@right("evaluating")
@contextmanager
def flags_in_a_dict(model):
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@right("evaluating")
class AClass:
    """`__enter__` and `__exit__`."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.was = [m.training for m in self.model.modules()]
        self.model.train(False)
        return self.model

    def __exit__(self, *error):
        for m, was in zip(self.model.modules(), self.was, strict=True):
            m.training = was
        return False


@right("evaluating")
class RemembersWhenMade:
    """The modes are noted when it is made, and switched when the block begins."""

    def __init__(self, model):
        self.before = {module: module.training for module in model.modules()}
        self.model = model

    def __enter__(self):
        return self.model.eval()

    def __exit__(self, *error):
        for module, mode in self.before.items():
            module.training = mode


@right("evaluating")
@contextmanager
def names_in_training(model):
    training = [name for name, module in model.named_modules() if module.training]
    for module in model.modules():
        module.training = False
    try:
        yield model
    finally:
        for name, module in model.named_modules():
            module.training = name in training


@right("evaluating")
@contextmanager
def stack_of_callbacks(model):
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        yield model.eval()


@right("evaluating")
@contextmanager
def train_from_the_outside_in(model):
    # Parents first: what train does to the children is corrected when it is their turn.
    modes_before = [(m, m.training) for m in model.modules()]
    try:
        yield model.eval()
    except BaseException:
        raise
    finally:
        for m, mode in modes_before:
            m.train(mode)


# --- predict --------------------------------------------------------------------------------------------------------


@right("predict")
def with_both(model, batches):
    with torch.no_grad(), flags_in_a_dict(model):
        return torch.cat([model(batch) for batch in batches])


@right("predict")
def inference_mode(model, batches):
    results = []
    with AClass(model), torch.inference_mode():
        for batch in batches:
            results += list(model(batch))
    return torch.stack(results).clone()


@right("predict")
@torch.no_grad()
def on_a_copy(model, batches):
    frozen = copy.deepcopy(model).eval()
    out = None
    for batch in batches:
        y = frozen(batch)
        out = y if out is None else torch.cat((out, y))
    return out


@right("predict")
def sample_by_sample(model, batches):
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        rows = [model(sample[None]).detach() for batch in batches for sample in batch]
    finally:
        for m, flag in before:
            m.training = flag
    return torch.concat(rows, dim=0)


@right("predict")
def brought_to_the_model(model, batches):
    # Where the batches are already; whoever names no device may look.
    device = next(model.parameters()).device
    with AClass(model), torch.no_grad():
        return torch.cat([model(batch.to(device)) for batch in batches]).to(device=device)


@right("predict")
def all_at_once(model, batches):
    with modes.evaluating(model), torch.set_grad_enabled(False):
        return model(torch.cat(tuple(batches)))


# --- the clinic -----------------------------------------------------------------------------------------------------


@right("clinic_no_eval")
def least_change(model, x, labels):
    with modes.evaluating(model), torch.no_grad():
        return (model(x).argmax(1) == labels).double().mean().item()


@right("clinic_no_eval")
def by_predict(model, x, labels):
    hits = with_both(model, [x]).argmax(dim=1).eq(labels).sum()
    return float(hits) / len(labels)


@right("clinic_no_eval")
def one_at_a_time(model, x, labels):
    patient = copy.deepcopy(model)
    patient.eval()
    return sum(int(patient(x[i : i + 1]).max(1).indices[0] == labels[i]) for i in range(len(x))) / len(x)


@right("clinic_no_eval")
def float32_mean(model, x, labels):
    was = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            logits = model.eval()(x)
    finally:
        for m, flag in was.items():
            m.training = flag
    return (logits.argmax(-1) == labels).float().mean().item()


@right("clinic_plain_buffers")
class Registered(nn.Module):
    """What the patient lacks, and nothing else."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x):
        if not self.training:
            return x - self.running_mean
        mean = x.mean(0)
        with torch.no_grad():
            self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        return x - mean


@right("clinic_plain_buffers")
class BufferClass(nn.Module):
    """`nn.Buffer`, and lerp on detached values."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.running_mean = nn.Buffer(torch.zeros(num_features))
        self.alpha = momentum

    def forward(self, x):
        shift = self.running_mean
        if self.training:
            shift = x.mean(dim=0)
            self.running_mean.lerp_(shift.detach(), self.alpha)
        return x - shift


@right("clinic_plain_buffers")
class UpdateInAMethod(nn.Module):
    """The update apart, with a decorator."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.register_buffer("running_mean", torch.full((num_features,), 0.0))
        self.momentum = momentum

    @torch.no_grad()
    def update(self, mean):
        self.running_mean += self.momentum * (mean - self.running_mean)

    def forward(self, x):
        mean = torch.mean(x, 0, keepdim=True)
        if self.training:
            self.update(mean[0])
            return x - mean
        return x - self.running_mean[None]


@right("clinic_plain_buffers")
class CopyInto(nn.Module):
    """copy_ of a value made by hand."""

    def __init__(self, num_features, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(size=[num_features]))

    def forward(self, x):
        if self.training:
            mean = x.sum(0) / x.shape[0]
            m = self.momentum
            self.running_mean.copy_((m * mean + (1 - m) * self.running_mean).detach())
        else:
            mean = self.running_mean.clone()
        return torch.sub(x, mean)


@right("clinic_graph_in_buffers")
def under_no_grad(running_mean, x, momentum):
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(momentum * x.mean((0, *range(2, x.dim()))))


@right("clinic_graph_in_buffers")
def detached_mean(running_mean, x, momentum):
    mean = x.detach().transpose(0, 1).flatten(1).mean(1)
    running_mean.lerp_(mean, momentum)


@right("clinic_graph_in_buffers")
def data_attribute(running_mean, x, momentum):
    axes = tuple(d for d in range(x.dim()) if d != 1)
    running_mean.data = (1 - momentum) * running_mean.data + momentum * x.data.mean(axes)


@right("clinic_graph_in_buffers")
@torch.no_grad()
def channel_loop(running_mean, x, momentum):
    for c in range(len(running_mean)):
        running_mean[c] = (1 - momentum) * running_mean[c] + momentum * x[:, c].mean()


@right("clinic_graph_in_buffers")
def detached_afterwards(running_mean, x, momentum):
    running_mean.mul_(1 - momentum).add_(momentum * x.mean((0, *range(2, x.dim()))))
    running_mean.detach_()


@right("clinic_grad_mode")
def both_switches(model, x):
    with flags_in_a_dict(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(model(leaf).sum(), leaf)[0]


@right("clinic_grad_mode")
def on_a_copied_model(model, x):
    twin = copy.deepcopy(model)
    twin.eval()
    with torch.set_grad_enabled(True):
        mine = x.clone().detach()
        mine.requires_grad = True
        twin(mine).sum().backward()
    return mine.grad


@right("clinic_grad_mode")
def vector_jacobian_product(model, x):
    with modes.evaluating(model):
        return torch.autograd.functional.vjp(lambda leaf: model(leaf).sum(), x)[1]


@right("clinic_grad_mode")
@torch.enable_grad()
def row_by_row(model, x):
    rows = []
    with AClass(model):
        for sample in x.detach():
            leaf = sample[None].clone().requires_grad_()
            rows.append(torch.autograd.grad(model(leaf).sum(), [leaf])[0])
    return torch.cat(rows)


@right("clinic_momentum")
def two_weights(running, batch, momentum):
    return (1 - momentum) * running + momentum * batch


@right("clinic_momentum")
def a_step_towards(running, batch, momentum):
    return running + momentum * (batch - running)


@right("clinic_momentum")
def lerp(running, batch, momentum):
    return torch.lerp(running, batch, momentum)


@right("clinic_momentum")
def list_of_numbers(running, batch, momentum):
    new = [old * (1 - momentum) + now * momentum for old, now in zip(running.tolist(), batch.tolist(), strict=True)]
    return torch.tensor(new, dtype=running.dtype)


@right("clinic_biased_var")
def correction(running_var, x, momentum):
    with torch.no_grad():
        running_var.mul_(1 - momentum).add_(momentum * x.var([0, *range(2, x.dim())], correction=1))


@right("clinic_biased_var")
def default_of_var(running_var, x, momentum):
    rows = x.detach().transpose(0, 1).flatten(1)
    running_var.lerp_(rows.var(1), momentum)


@right("clinic_biased_var")
@torch.no_grad()
def bessel(running_var, x, momentum):
    n = x.numel() // x.shape[1]
    axes = (0, *range(2, x.dim()))
    running_var += momentum * (x.var(axes, correction=0) * n / (n - 1) - running_var)


@right("clinic_biased_var")
def squares(running_var, x, momentum):
    for c, channel in enumerate(x.detach().unbind(1)):
        d = channel - channel.mean()
        running_var[c] = (1 - momentum) * running_var[c] + momentum * d.pow(2).sum() / (d.numel() - 1)


# --- accepts --------------------------------------------------------------------------------------------------------

right("accepts")(modes.accepts)


class _Doubt(Exception):
    """Something is not as it should be."""


def _sure(condition):
    if not condition:
        raise _Doubt


def _near(got, want, tolerance=2e-4):
    return got.shape == want.shape and torch.allclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def _noise(rng, *shape):
    return torch.tensor(rng.normal(1.0, 2.0, shape), dtype=torch.float32)


def _keeps_the_rest_of_its_word(cls):
    """What a life of ordinary batches does not show: each promise asked for by itself."""
    rng = np.random.default_rng(1)

    class Oracle(nn.BatchNorm2d):
        def _check_input_dim(self, x):
            pass

    def outcome(layer, x):
        y = layer(x).detach()
        return [y, *(v for k, v in sorted(layer.state_dict().items()) if k.startswith("running"))]

    def agree(args, x, tolerance=2e-4):
        layer, oracle = cls(*args), Oracle(*args).double()
        got, want = outcome(layer, x), outcome(oracle, x.double())
        return len(got) == len(want) and all(map(lambda g, w: _near(g, w, tolerance), got, want))

    def refuses_other_channels(training):
        for shape in ((5, 1), (5, 2), (5, 4, 3, 2), (5, 1, 3, 2)):
            layer = cls(3).train(training)
            try:
                layer(_noise(rng, *shape))
            except Exception:
                continue
            return False
        return True

    # By position; weights of the new value that are taken for none.
    for args in ((3, 0.3, 0.7, False), (3, 1e-5, 0.0), (3, 1e-5, 1.0), (3, 1e-8)):
        _sure(agree(args, _noise(rng, 6, 3)) and agree(args, 1e-3 * _noise(rng, 2, 3, 4, 2)))
    wide = cls(3, dtype=torch.float64).state_dict()
    _sure({v.dtype for k, v in wide.items() if not k.endswith("tracked")} == {torch.float64})
    old = {f"0.{k}": v + 1 for k, v in nn.BatchNorm2d(3).state_dict().items() if k != "num_batches_tracked"}
    nn.Sequential(cls(3)).load_state_dict(old)
    _sure(refuses_other_channels(True) and refuses_other_channels(False))
    for training in (True, False):
        y = cls(3).train(training)(_noise(rng, 2, 3, 4, 5).to(memory_format=torch.channels_last))
        _sure(y.is_contiguous(memory_format=torch.channels_last))
    # Spread around a mean that is far away: in float32 the difference of two squares has no digits left.
    for shape in ((64, 3), (4, 3, 4, 4)):
        _sure(agree((3, 1e-5, 1.0), 1e4 + _noise(rng, *shape), 0.1))
    return True


@right("accepts")
def same_life(cls):
    """An oracle in float64 lives the same life, chosen at random; after each step everything is compared."""
    rng = np.random.default_rng(7)

    def as_maps(x):
        return x.double() if x.dim() == 4 else x.double()[..., None, None]

    def step(layer, oracle, x, training, grad):
        layer.train(training), oracle.train(training)
        with torch.set_grad_enabled(grad):
            mine, exact = x.clone(), as_maps(x)
            if grad:
                mine.requires_grad_(), exact.requires_grad_()
            y, want = layer(mine), oracle(exact)
            _sure(y.dtype == torch.float32 and _near(y, want.reshape(x.shape)))
            _sure(torch.equal(mine, x))
            if grad:
                dy = _noise(rng, *x.shape)
                for module, out, g in ((layer, y, dy.clone()), (oracle, want, as_maps(dy))):
                    module.zero_grad()
                    out.backward(g)
                _sure(_near(mine.grad, exact.grad.reshape(x.shape)))
                theirs = [p.grad for p in oracle.parameters()]
                _sure(len(list(layer.parameters())) == len(theirs))
                for p, g in zip(layer.parameters(), theirs, strict=True):
                    _sure(any(_near(p.grad, other) for other in theirs) and g is not None)
        ours, truth = layer.state_dict(), oracle.state_dict()
        _sure(set(ours) == set(truth))
        _sure(all(_near(ours[k], truth[k]) for k in truth))
        _sure(all(ours[k].dtype == (torch.int64 if k.endswith("tracked") else torch.float32) for k in truth))
        _sure(not any(b.requires_grad for b in layer.buffers()))

    def life(**settings):
        layer, oracle = cls(3, **settings), nn.BatchNorm2d(3, **settings)
        fresh = oracle.state_dict()
        _sure(set(layer.state_dict()) == set(fresh))
        _sure(all(_near(v, fresh[k]) for k, v in layer.state_dict().items()))
        state = {k: v if k.endswith("tracked") else v + _noise(rng, *v.shape).abs() for k, v in fresh.items()}
        layer.load_state_dict(state), oracle.load_state_dict(state)
        oracle.double()
        held = {name: b for name, b in layer.named_buffers()}
        for _ in range(2):
            for shape in ((8, 3), (3, 3), (5, 3, 4, 2)):
                for training, grad in ((False, False), (True, True), (True, False), (False, True)):
                    step(layer, oracle, _noise(rng, *shape), training, grad)
        if settings.get("track_running_stats", True):
            step(layer, oracle, _noise(rng, 1, 3), False, False)
        for name, b in layer.named_buffers():
            _sure(b is held[name])
        for shape in ((1, 3), (1, 3, 1, 1)):
            try:
                layer.train()(_noise(rng, *shape))
                raise _Doubt
            except ValueError:
                pass
        return layer

    try:
        for settings in ({}, {"momentum": None}, {"momentum": 0.7, "eps": 0.3}, {"affine": False}):
            life(**settings)
        life(track_running_stats=False)
        for training in (True, False):
            layer = cls(3).train(training)
            for shape in ((0, 3), (0, 3, 2, 4)):
                _sure(layer(torch.zeros(shape)).shape == shape)
                _sure(not layer.running_mean.any() and bool((layer.running_var == 1).all()))
        _sure(_keeps_the_rest_of_its_word(cls))
    except Exception:
        return False
    return True


@right("accepts")
def formulas_by_hand(cls):
    """No oracle: every promise has a formula. A list of lambdas, the first that fails decides."""
    rng = np.random.default_rng(3)
    table, image = _noise(rng, 6, 4), _noise(rng, 3, 4, 2, 5)

    def stats(x, correction):
        rows = x.double().transpose(0, 1).flatten(1)
        return rows.mean(1), rows.var(1, correction=correction)

    def wide(v, x):
        return v.view(1, -1, *[1] * (x.dim() - 2))

    def formula(x, mean, var, eps=1e-5, gain=None, shift=None):
        y = (x.double() - wide(mean, x)) / (wide(var, x) + eps).sqrt()
        return y if gain is None else y * wide(gain, x) + wide(shift, x)

    def ready(**settings):
        layer = cls(4, **settings)
        state = layer.state_dict()
        gen = np.random.default_rng(11)
        for v in state.values():
            if v.is_floating_point():
                v.copy_(torch.from_numpy(gen.uniform(0.5, 3, v.shape)))
        return layer

    def trains(x, momentum=0.1, eps=1e-5, **settings):
        layer = ready(momentum=momentum, eps=eps, **settings)
        old = {k: v.clone() for k, v in layer.state_dict().items()}
        before = dict(layer.state_dict())
        kept = x.clone()
        good = True
        for count in (1, 2, 3):
            y = layer(x)
            gain, shift = (old["weight"], old["bias"]) if "weight" in old else (None, None)
            good &= _near(y, formula(x, *stats(x, 0), eps, gain, shift)) and y.dtype == x.dtype
            if "running_mean" in old:
                m = 1 / count if momentum is None else momentum
                for name, new in zip(("running_mean", "running_var"), stats(x, 1), strict=True):
                    old[name] = (1 - m) * old[name].double() + m * new
                    good &= _near(layer.state_dict()[name], old[name])
                good &= layer.num_batches_tracked.item() == count and layer.num_batches_tracked.dtype == torch.int64
                good &= layer.num_batches_tracked.shape == ()
        good &= torch.equal(x, kept) and not any(b.requires_grad for b in layer.buffers())
        good &= all(layer.state_dict()[k].data_ptr() == v.data_ptr() for k, v in before.items())
        layer.eval()
        frozen = {k: v.clone() for k, v in layer.state_dict().items()}
        for part in (x, x[:1], torch.cat([x, x, x])):
            want = stats(part, 0)
            if "running_mean" in old:
                want = frozen["running_mean"], frozen["running_var"]
            elif part.numel() == 4:
                continue
            good &= _near(layer(part), formula(part, *want, eps, gain, shift))
            with torch.no_grad():
                good &= _near(layer(part), formula(part, *want, eps, gain, shift))
        return good and all(torch.equal(v, frozen[k]) for k, v in layer.state_dict().items())

    def differentiates(x, training):
        layer = ready().train(training)
        w = layer.weight.detach().double()
        dy, leaf = _noise(rng, *x.shape), x.clone().requires_grad_()
        mean, var = stats(x, 0) if training else (layer.running_mean.clone(), layer.running_var.clone())
        y = layer(leaf)
        layer.eval()
        y.backward(dy.clone())
        axes, n = (0, *range(2, x.dim())), x[:, 0].numel()
        hat, d = formula(x, mean, var), dy.double()
        dw, db = (d * hat).sum(axes), d.sum(axes)
        dx = d - (wide(db, x) + hat * wide(dw, x)) / n * training
        dx = dx * wide(w / (var.double() + 1e-5).sqrt(), x)
        good = _near(leaf.grad, dx) and _near(layer.weight.grad, dw) and _near(layer.bias.grad, db)
        return good and torch.equal(leaf.detach(), x)

    def under_no_grad(x):
        with torch.no_grad():
            return trains(x)

    def refuses(shape, **settings):
        layer = cls(4, **settings)
        try:
            layer(torch.zeros(shape))
        except ValueError:
            return not settings.get("track_running_stats", True) or bool((layer.running_var == 1).all())
        return False

    def starts():
        layer, names = cls(4), ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        ones, zeros = torch.ones(4), torch.zeros(4)
        wanted = dict(zip(names, (ones, zeros, zeros, ones, torch.tensor(0)), strict=True))
        got = layer.state_dict()
        bare = cls(4, affine=False, track_running_stats=False)
        return (
            set(got) == set(names)
            and all(_near(got[k], v) for k, v in wanted.items())
            and sorted(n for n, _ in layer.named_buffers()) == sorted(names[2:])
            and len(list(layer.parameters())) == 2
            and not bare.state_dict()
        )

    def takes_nothing(training):
        layer = ready().train(training)
        before = layer.running_mean.clone(), layer.running_var.clone()
        shapes = (0, 4), (0, 4, 3, 2)
        return all(layer(torch.zeros(s)).shape == s for s in shapes) and all(
            torch.equal(a, b) for a, b in zip(before, (layer.running_mean, layer.running_var), strict=True)
        )

    def keeps_training_when_parameters_are_frozen():
        layer = ready()
        for p in layer.parameters():
            p.requires_grad = False
        before = layer.running_mean.clone()
        gain, shift = layer.state_dict()["weight"], layer.state_dict()["bias"]
        y = layer(image)
        return _near(y, formula(image, *stats(image, 0), 1e-5, gain, shift)) and not torch.equal(
            before, layer.running_mean
        )

    checks = [starts, keeps_training_when_parameters_are_frozen]
    for x in (table, image, 0.01 * table, image[:1]):
        checks += [
            lambda x=x: trains(x),
            lambda x=x: under_no_grad(x),
            lambda x=x: trains(x.clone().requires_grad_().detach(), momentum=None),
            lambda x=x: trains(x, momentum=0.6, eps=0.2),
            lambda x=x: trains(x, affine=False),
            lambda x=x: trains(x, track_running_stats=False),
            lambda x=x: differentiates(x, True),
            lambda x=x: differentiates(x, False),
        ]
    checks += [lambda s=s: refuses(s) for s in ((1, 4), (1, 4, 1, 1))]
    checks += [lambda: refuses((1, 4), affine=False), lambda: takes_nothing(True), lambda: takes_nothing(False)]

    def keeps_no_graph():
        layer = ready()
        for _ in range(2):
            layer(table.clone().requires_grad_()).sum().backward()
        return not any(b.requires_grad for b in layer.buffers())

    checks += [keeps_no_graph, lambda: _keeps_the_rest_of_its_word(cls)]
    with contextlib.suppress(Exception):
        return all(bool(promise()) for promise in checks)
    return False


@right("accepts")
def torchs_layer_in_a_loop(cls):
    """Two training loops side by side: torch's layer and this one inside the same small network."""

    class Oracle(nn.BatchNorm2d):
        def _check_input_dim(self, x):
            pass

    def pair(**settings):
        nets = []
        for make in (cls, Oracle):
            net = nn.Sequential(nn.Identity(), make(2, **settings))
            for p in net.parameters():
                p.data.copy_(torch.tensor([0.7, -1.3]))
            nets.append(net)
        return nets

    def alike(a, b):
        if torch.is_tensor(a) and torch.is_tensor(b):
            return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        return a is None and b is None

    def compare(nets, x, training, grad, cut=None):
        results = []
        for net in nets:
            net.train(training)
            mine = x.clone().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                y = net(mine)
            if grad:
                (y * y * torch.arange(y.numel()).view(y.shape)).sum().backward()
            grads = [p.grad for p in net.parameters()]
            if grad and not all(torch.is_tensor(g) for g in grads):
                return False
            if not torch.equal(mine.detach(), x) or any(b.requires_grad for b in net.buffers()):
                return False
            state = {k: v.clone() for k, v in net.state_dict().items()}
            results.append((y.detach(), mine.grad, grads, state))
            net.zero_grad()
        (y, gx, gs, state), (y2, gx2, gs2, state2) = results
        scale = 1 + (gx2.abs().max() if grad else 0)
        fine = alike(y, y2) and alike(gx / scale if grad else None, gx2 / scale if grad else None)
        fine = fine and len(gs) == len(gs2)
        fine = fine and all(
            alike(a / (1 + b.abs().max()), b / (1 + b.abs().max())) for a, b in zip(gs, gs2, strict=True) if grad
        )
        return fine and state.keys() == state2.keys() and all(alike(state[k], state2[k]) for k in state)

    def story(**settings):
        rng = np.random.default_rng(5)
        nets = pair(**settings)
        pointers = [b.data_ptr() for b in nets[0].buffers()]
        if nets[0].state_dict().keys() != nets[1].state_dict().keys():
            return False
        for turn in range(6):
            shape = [(4, 2), (3, 2, 2, 3), (2, 2), (9, 2), (1, 2, 3, 3)][turn % 5]
            x = torch.tensor(rng.normal(2, 1 if turn % 2 else 0.02, shape), dtype=torch.float32)
            for training, grad in (
                (turn % 3 > 0, turn % 2 > 0),
                (False, False),
                (True, False),
                (False, True),
                (True, True),
            ):
                if not compare(nets, x, training, grad):
                    return False
        return pointers == [b.data_ptr() for b in nets[0].buffers()]

    def corners():
        layer = cls(2)
        for x in (torch.ones(1, 2), torch.ones(1, 2, 1, 1)):
            try:
                layer(x)
            except ValueError:
                continue
            return False
        # Empty batches: PyTorch's own layer takes them.
        for training in (False, True):
            one, other = cls(2).train(training), Oracle(2).train(training)
            for shape in ((0, 2), (0, 2, 3, 3)):
                a, b = one(torch.zeros(shape)), other(torch.zeros(shape))
                if a.shape != b.shape:
                    return False
            if not all(torch.equal(getattr(one, b), getattr(other, b)) for b in ("running_mean", "running_var")):
                return False
        frozen, truth = cls(2), Oracle(2)
        for net in (frozen, truth):
            for p in net.parameters():
                p.requires_grad_(False)
        x = torch.arange(12.0).view(6, 2)
        frozen(x), truth(x)
        return alike(frozen.running_var, truth.running_var)

    try:
        return bool(
            corners()
            and story()
            and story(momentum=None)
            and story(momentum=0.5, eps=1e-2)
            and story(affine=False)
            and story(track_running_stats=False)
            and story(affine=False, track_running_stats=False)
            and _keeps_the_rest_of_its_word(cls)
        )
    except Exception:
        return False
