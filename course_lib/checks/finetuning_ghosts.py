"""Problem set 4, exercises 4 and 5: what is asked of `GhostBatchNorm` and `momentum_for_accumulation`."""

import math

import torch

from course_lib.checks.piece import Piece

# --- GhostBatchNorm ---------------------------------------------------------------------------------------------

ghost = Piece(
    "finetuning.GhostBatchNorm",
    call="GhostBatchNorm(num_features, virtual_batch_size, eps, momentum, affine, track_running_stats, device, dtype)",
)

# (samples, virtual batch size): the last part is smaller, and no way of cutting into equal parts gives the same.
_TABLES, _CUT = [(14, 6), (17, 7), (18, 8)], [(9, 4), (7, 3), (11, 5)]


def _tensor_of(layer, name):
    """A parameter or buffer by its own name, wherever the layer keeps it."""
    found = [*layer.named_parameters(), *layer.named_buffers()]
    return next((tensor for path, tensor in found if path.rpartition(".")[2] == name), None)


def _ghost(impl, case, channels, size, **options):
    """A layer with drawn gamma, beta and running statistics."""
    layer = impl(channels, size, **options).to(case.torch_dtype)
    for name, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 0.5, 2)):
        value = case.given_tensor(case.uniform(low, high, channels), name, watch=False)
        tensor = _tensor_of(layer, name)
        if tensor is not None:
            with torch.no_grad():
                tensor.copy_(value)
    return layer.train()


def _ghost_input(case, n, tail=(), name="x"):
    """(n, 3, *tail), every virtual batch with another mean and spread."""
    return case.given_tensor(case.draw((n, 3, *tail), case.uniform(-3, 3, (n, 3, *(1 for _ in tail))), 1.5), name)


def _moved(layer):
    return {name: _tensor_of(layer, name).detach().clone() for name in ("running_mean", "running_var")}


parts = ghost.group("training: every virtual batch is normalised by itself", points=0.75)


@parts.scenario()
def ghost_of_table(impl, case):
    n, size = case.choice(_TABLES)
    layer = _ghost(impl, case, 3, size)
    y = layer(_ghost_input(case, n)).detach()
    return {
        "y": y,
        "y of parts of the same size": layer(_ghost_input(case, 2 * size, name="even x")).detach(),
        "inputs changed": case.changed(),
    }


@parts.scenario()
def ghost_of_maps(impl, case):
    n, size = case.choice(_CUT)
    layer = _ghost(impl, case, 3, size, eps=case.number("eps", 0.3, 0.8))
    return {
        f"y for {2 + len(tail)} axes": layer(_ghost_input(case, n, tail, f"x{tail}")).detach()
        for tail in ((4,), (2, 3), (2, 1, 2))
    }


@parts.scenario()
def ghost_of_small_batch(impl, case):
    y = _ghost(impl, case, 3, 8)(_ghost_input(case, case.integer(3, 5))).detach()
    # As small as a virtual batch can be: every sample by itself.
    single = _ghost(impl, case, 3, 1)(_ghost_input(case, 3, (2, 2), "maps")).detach()
    return {"y": y, "y of virtual batches of one sample": single}


steps = ghost.group("one update of the running statistics per virtual batch, in order", points=0.75)


@steps.scenario()
def ghost_updates(impl, case):
    n, size = case.choice(_CUT)
    layer = _ghost(impl, case, 3, size, momentum=case.number("momentum", 0.25, 0.4))
    y = layer(_ghost_input(case, n, (2, 2)))
    counter = _tensor_of(layer, "num_batches_tracked")
    seen = {
        **_moved(layer),
        "samples that come out": len(y),
        # A layer that averages in another way need not have one.
        "a counter, if there is one, counts parts": counter is None or int(counter) == math.ceil(n / size),
    }
    # Two batches of other ranks and sizes.
    layer(_ghost_input(case, n + size, (3,), "next x"))
    with torch.no_grad():
        layer(_ghost_input(case, 2 * size, (2, 1, 2), "last x"))
    return {**seen, **{f"{name} at last": value for name, value in _moved(layer).items()}}


@steps.scenario()
def ghost_updates_by_default(impl, case):
    n, size = case.choice(_TABLES)
    layer = _ghost(impl, case, 3, size)
    layer(_ghost_input(case, n))
    return _moved(layer)


evaluation = ghost.group("eval: BatchNorm as ever", points=0.5)


@evaluation.scenario()
def ghost_in_eval(impl, case):
    layer = _ghost(impl, case, 3, 4, eps=case.number("eps", 0.3, 0.8)).eval()
    seen = {}
    for tail in ((), (2,), (2, 2), (2, 1, 2)):
        x = _ghost_input(case, case.integer(5, 9), tail, f"x{tail}")
        seen[f"y for {2 + len(tail)} axes"] = layer(x).detach()
    x = _ghost_input(case, 1, name="one x").requires_grad_()
    y = layer(x)
    (y * case.tensor(x.shape, mean=1.0, name="dy")).sum().backward()
    counter = _tensor_of(layer, "num_batches_tracked")
    return {
        **seen,
        **_moved(layer),
        "a counter, if there is one, stays": counter is None or int(counter) == 0,
        "y of one sample": y.detach(),
        "dx of one sample": x.grad,
        "its dweight": _tensor_of(layer, "weight").grad,
    }


@evaluation.scenario()
def ghost_in_eval_without_statistics(impl, case):
    eps = case.number("eps", 0.3, 0.8)
    layer = _ghost(impl, case, 3, 4, eps=eps, track_running_stats=False).eval()
    return {"y": layer(_ghost_input(case, 9, (2,))).detach()}


arguments = ghost.group("gradients, and the arguments of BatchNorm", points=0.5)


@arguments.scenario()
def ghost_gradients(impl, case):
    n, size = case.choice(_CUT)
    layer = _ghost(impl, case, 3, size, eps=case.number("eps", 0.3, 0.8))
    x = _ghost_input(case, n, (2,)).requires_grad_()
    (layer(x) * case.tensor(x.shape, mean=1.0, name="dy")).sum().backward()
    of = {"dweight": _tensor_of(layer, "weight").grad, "dbias": _tensor_of(layer, "bias").grad}
    history = ", ".join(name for name in _moved(layer) if _tensor_of(layer, name).requires_grad)
    return {"dx": x.grad, **of, "statistics with a history": history or "none"}


@arguments.scenario()
def ghost_arguments(impl, case):
    # Every argument by its place.
    layer = _ghost(impl, case, 3, 4)
    eps, momentum = case.number("eps", 0.3, 0.8), case.number("momentum", 0.25, 0.4)
    bare = impl(3, 4, eps, momentum, False, True, None, torch.float64)
    new = impl(num_features=3, virtual_batch_size=4, momentum=0.3, device="cpu", dtype=torch.float64)
    kinds = {str(t.dtype) for layer in (bare, new) for t in layer.state_dict().values() if t.is_floating_point()}
    meta = impl(3, 4, device="meta")
    x = _ghost_input(case, 9, (2,))
    bare.to(case.torch_dtype).train()(x)
    seen = {}
    for affine in (True, False):
        for track in (True, False):
            layer_of = _ghost(impl, case, 3, 4, eps=0.5, affine=affine, track_running_stats=track)
            for mode in ("train", "eval"):
                name = f"y of affine={affine}, track_running_stats={track} in {mode} mode"
                seen[name] = getattr(layer_of, mode)()(x).detach()
    for momentum in (0.0, None):
        layer_of = _ghost(impl, case, 3, 4, momentum=momentum)
        layer_of(x)
        layer_of(x[:6])
        seen |= {f"{name} of momentum={momentum}": value for name, value in _moved(layer_of).items()}
    return {
        **seen,
        "y of a new layer": new.to(case.torch_dtype)(x).detach(),
        "parameters of affine=False": len(list(bare.parameters())),
        "statistics of track_running_stats=False": len(list(impl(3, 4, track_running_stats=False).buffers())),
        "dtypes of dtype=torch.float64": ", ".join(sorted(kinds)),
        "devices of device='meta'": ", ".join(sorted({t.device.type for t in (*meta.parameters(), *meta.buffers())})),
        "dtype of y for float32": str(impl(3, 4).float()(torch.ones(8, 3, dtype=torch.float32)).dtype),
        "y": layer(x).detach(),
        **_moved(bare),
    }


# --- momentum_for_accumulation ----------------------------------------------------------------------------------

accumulation = Piece(
    "finetuning.momentum_for_accumulation", call="momentum_for_accumulation(momentum, micro_batches) → float"
)

forgetting = accumulation.group("k updates forget as much as one", points=0.5)


@forgetting.scenario()
def accumulated(impl, case):
    m = impl(case.number("momentum", 0.15, 0.6), case.integer(3, 9))
    return {"m": m, "m is a float": isinstance(m, float)}


@forgetting.scenario()
def accumulated_once(impl, case):
    m = impl(momentum=case.number("momentum", 0.15, 0.45), micro_batches=1)
    return {"m for one micro-batch": m, "m is a float": isinstance(m, float)}


# Whoever solves (1 − m)^k = 0 numerically gets as near as the rounding of the power allows.
@forgetting.scenario(within={"m for a momentum of 1": 1e-3})
def accumulated_often(impl, case):
    m = impl(case.number("momentum", 0.85, 0.97), case.choice([32, 64, 100]))
    return {"m": m, "m for a momentum of 1": impl(1.0, 2)}
