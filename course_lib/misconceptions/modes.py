"""What people get wrong in problem set 3. The faults of the clinic's patients are among them."""

from course_lib.misconceptions import Misconception

MODE = "chapter 3, «What the mode changes»"
ONE_CALL = "chapter 3, «Before and after one call»"
FORGOTTEN = "chapter 3, «Three symptoms of a forgotten eval»"
TRAIN_AGAIN = "chapter 3, «Forgetting to train again»"
TRAINING = "chapter 3, «Backward in training: functions of the batch»"
CONSTANTS = "chapter 3, «Backward in eval: constants»"
OWN = "chapter 3, «A backward of your own»"
SWITCHES = "chapter 3, «Mode and gradients are two switches»"
WHO = "chapter 3, «Who is in which mode»"
FOR_A_WHILE = "chapter 3, «Eval for a while»"
PREDICTING = "chapter 3, «Predicting properly»"
STATE = "chapter 3, «Statistics are state»"
NO_GRAPH = "chapter 3, «No graph in a buffer»"
NEW_VALUE = "chapter 3, «The weight of the new value»"
REMEMBERED = "chapter 3, «The variance that is remembered»"
TESTING = "chapter 3, «A test that catches bugs»"
IN_PLACE = "chapter 2, «Updated in place»"
DEVICE = "chapter 2, «A layer that names no device»"
LAYOUT = "chapter 2, «Memory layout»"


def _of(piece):
    def mistake(name, change, hint, read, seen):
        return Misconception(f"modes.{piece}", name, tuple(change), hint, read, seen)

    return mistake


# --- batch_norm_eval_backward ---------------------------------------------------------------------------------------

_backward = _of("batch_norm_eval_backward")
_DX = "dx = dy * (weight * invstd).view(per_channel)"
_INVSTD = "invstd = (running_var.to(dtype) + eps).rsqrt()"
_X_HAT = "x_hat = (x.to(dtype) - running_mean.view(per_channel)) * invstd.view(per_channel)"
_RESULT = "return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)"

# fmt: off
EVAL_BACKWARD = [
    _backward(
        "batch_coupled",
        [(_DX, "d = dy - dy.mean(axes, keepdim=True) - x_hat * (dy * x_hat).mean(axes, keepdim=True)\n"
               "    dx = d * (weight * invstd).view(per_channel)")],
        "This is the gradient of training: in eval the statistics do not depend on x, and nothing comes off.",
        CONSTANTS, "the training formula, used for both modes",
    ),
    _backward(
        "mean_coupled", [(_DX, "dx = (dy - dy.mean(axes, keepdim=True)) * (weight * invstd).view(per_channel)")],
        "The mean of dy comes off, as if the mean of x moved with x: the running mean is a constant.",
        CONSTANTS, "derivations that differentiate the mean only",
    ),
    _backward(
        "eps_outside_root", [(_INVSTD, "invstd = 1 / (running_var.to(dtype).sqrt() + eps)")],
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        CONSTANTS, "std + eps",
    ),
    _backward(
        "eps_ignored", [(_INVSTD, "invstd = (running_var.to(dtype) + 1e-5).rsqrt()")],
        "The argument eps is not used: 1e-5 is only its default.",
        CONSTANTS, "a constant copied from the formula's default",
    ),
    _backward(
        "eps_forgotten", [(_INVSTD, "invstd = running_var.to(dtype).rsqrt()")],
        "eps is left out: for a small variance it decides.",
        CONSTANTS, "derivations without eps",
    ),
    _backward(
        "no_root", [(_INVSTD, "invstd = 1 / (running_var.to(dtype) + eps)")],
        "The slope has the variance under it: it is divided by the standard deviation.",
        CONSTANTS, "running_var taken for a standard deviation",
    ),
    _backward(
        "weight_missing", [(_DX, "dx = dy * invstd.view(per_channel)")],
        "The weight is missing in dx: it is part of the line's slope.",
        CONSTANTS, "derivations that start at x̂",
    ),
    _backward(
        "invstd_missing", [(_DX, "dx = dy * weight.view(per_channel)")],
        "The inverse standard deviation is missing in dx: it is part of the line's slope.",
        CONSTANTS, "derivations that end at x − mean",
    ),
    _backward(
        "batch_statistics",
        [(_X_HAT, "x_hat = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + eps).sqrt()")],
        "The gradient of weight is taken at the batch's x̂: in eval x̂ comes from the running statistics.",
        CONSTANTS, "x̂ recomputed in backward, in the way of training",
    ),
    _backward(
        "dweight_of_x", [("(dy * x_hat).sum(axes)", "(dy * x).sum(axes)")],
        "The gradient of weight is taken at x: weight multiplies x̂.",
        CONSTANTS, "the gradient of a plain linear layer",
    ),
    _backward(
        "parameter_gradients_averaged", [(_RESULT, "n = dy[:, :1].numel()\n    return dx, dweight / n, dbias / n")],
        "dweight and dbias are means over the batch: they are sums, the loss already has its share of 1/N.",
        CONSTANTS, "averaging twice",
    ),
    _backward(
        "parameter_gradients_swapped", [(_RESULT, "return dx, dbias, dweight")],
        "dweight and dbias have changed places.",
        CONSTANTS, "another framework's order",
    ),
    _backward(
        "batch_axis_only", [("axes = (0, *range(2, x.dim()))", "axes = (0,)")],
        "The sums run over axis 0 only: a channel's weight acts at all its positions, so all of them add up.",
        CONSTANTS, "code for tables, used on images",
    ),
    _backward(
        "no_broadcast", [(_DX, "dx = dy * (weight * invstd)")],
        "A vector of shape (C,) meets the last axis of dy: give it a shape that lines up with axis 1.",
        CONSTANTS, "layers written for (N, C) and used on images",
    ),
    _backward(
        "view_of_the_batch",
        [("    dy = dy.to(dtype)\n", "    dy = dy.view(len(x), x.shape[1], -1).view_as(x).to(dtype)\n")],
        "x or dy is laid out anew as a view, which only contiguous memory allows: either may come in any layout.",
        LAYOUT, "dy.view(N, C, -1), to have two axes to sum over",
    ),
    _backward(
        "gradient_overwritten",
        [(_DX, "dweight, dbias = (dy * x_hat).sum(axes), dy.sum(axes)\n"
               "    dx = dy.mul_((weight * invstd).view(per_channel))"),
         ("    dweight = (dy * x_hat).sum(axes)\n    dbias = dy.sum(axes)\n", "")],
        "dy is changed in place: whoever called still needs it, another branch for example.",
        CONSTANTS, "dy *= slope, to save memory",
    ),
]

# --- BatchNormFunction ----------------------------------------------------------------------------------------------

_function = _of("BatchNormFunction")
_VAR = "var = centred.square().mean(axes)"
_UNBIASED = "unbiased = var * (n / (n - 1))"
_BY_BATCH = "ctx.batch_normalised = training or running_mean is None"
_ROOT = "invstd = (var + eps).rsqrt()"
_MEAN_MOVES = "running_mean.mul_(1 - momentum).add_(momentum * mean)"
_VAR_MOVES = "running_var.mul_(1 - momentum).add_(momentum * unbiased)"
_SAVED = "ctx.save_for_backward(x_hat, invstd, weight)"
_TAKEN = "x_hat, invstd, weight = ctx.saved_tensors"
_COUPLED = "dx = dx - (dbias.view(per_channel) + x_hat * dweight.view(per_channel)) / n"
_SCALE = "scale = invstd if weight is None else invstd * weight"
_THREE = "zip((dx, dweight, dbias), "
_ALL = "return *(gradient if needed else None for gradient, needed in gradients), None, None, None, None, None"

FUNCTION = [
    _function(
        "unbiased_normalises",
        [(_VAR, "var = centred.square().sum(axes) / max(n - 1, 1)"), (_UNBIASED, "unbiased = var")],
        "The batch is normalised with the unbiased variance, divided by n − 1: that one is for running_var.",
        TRAINING, "x.var with torch's default correction",
    ),
    _function(
        "eps_outside_root", [(_ROOT, "invstd = 1 / (var.sqrt() + eps)")],
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        MODE, "std + eps",
    ),
    _function(
        "eps_ignored", [(_ROOT, "invstd = (var + 1e-5).rsqrt()")],
        "The argument eps is not used: 1e-5 is only what layers pass by default.",
        MODE, "a constant copied from the formula's default",
    ),
    _function(
        "no_root", [(_ROOT, "invstd = 1 / (var + eps)")],
        "The batch is divided by the variance: divide by its square root.",
        MODE, "slips of the pen",
    ),
    _function(
        "bias_forgotten", [("y = y + bias.view(per_channel)", "pass")],
        "The bias is missing in y: it is added after the scale.",
        MODE, "answers that stop after the scale",
    ),
    _function(
        "shift_before_scale",
        [("y = y * weight.view(per_channel)",
          "y = (y + (0 if bias is None else bias.view(per_channel))) * weight.view(per_channel)"),
         ("if bias is not None:\n            y", "if bias is not None and weight is None:\n            y")],
        "The bias is multiplied by weight: scale first, shift after.",
        MODE, "misplaced parentheses",
    ),
    _function(
        "input_overwritten", [("shifted = wide - pivot", "shifted = wide.sub_(pivot.clone())")],
        "x is changed in place: whoever called still needs it, a residual branch for example.",
        OWN, "x -= mean, to save memory",
    ),
    _function(
        "views_of_the_batch",
        [("wide = x.to(", "x.view(len(x), x.shape[1], -1)\n        wide = x.to("),
         ("wide = dy.to(", "dy.view(len(dy), dy.shape[1], -1)\n        wide = dy.to(")],
        "x or dy is laid out anew as a view, which only contiguous memory allows: either may come in any layout.",
        LAYOUT, "x.view(N, C, -1) for inputs of any rank",
    ),
    _function(
        "constants_in_training", [(_COUPLED, "pass")],
        "The gradient of training treats the statistics as constants: there they move with every x of the batch.",
        TRAINING, "the chain rule through (x − mean) · invstd alone",
    ),
    _function(
        "no_mean_term", [(_COUPLED, "dx = dx - x_hat * dweight.view(per_channel) / n")],
        "The path through the batch's mean is missing: in training, dx of a channel sums to zero.",
        TRAINING, "derivations that treat the mean as a constant",
    ),
    _function(
        "no_variance_term", [(_COUPLED, "dx = dx - dbias.view(per_channel) / n")],
        "The path through the batch's variance is missing: in training, the part along x̂ comes off.",
        TRAINING, "derivations that treat the variance as a constant",
    ),
    _function(
        "coupling_not_averaged", [(_COUPLED, "dx = dx - dbias.view(per_channel) - x_hat * dweight.view(per_channel)")],
        "The two coupling terms are sums where means belong: divide them by n.",
        TRAINING, "a forgotten 1/n",
    ),
    _function(
        "coupling_added", [(_COUPLED, "dx = dx + (dbias.view(per_channel) + x_hat * dweight.view(per_channel)) / n")],
        "The two coupling terms are added: they come off.",
        TRAINING, "a lost minus sign",
    ),
    _function(
        "n_is_batch_size", [("n = dy[:, :1].numel()", "n = len(dy)")],
        "The coupling terms are divided by the batch size: n counts the positions of a channel, too.",
        TRAINING, "code for tables, used on images",
    ),
    _function(
        "divided_by_n_minus_one", [("n = dy[:, :1].numel()", "n = dy[:, :1].numel() - 1")],
        "The coupling terms are divided by n − 1: the variance that normalises is the biased one, so it is n.",
        TRAINING, "the unbiased variance's derivative",
    ),
    _function(
        "weight_missing", [(_SCALE, "scale = invstd")],
        "The weight is missing in dx: the gradient at x̂ is dy times weight.",
        OWN, "derivations that start at x̂",
    ),
    _function(
        "invstd_missing", [(_SCALE, "scale = torch.ones_like(invstd) if weight is None else weight")],
        "The inverse standard deviation is missing in dx: what divides in forward divides the gradient too.",
        OWN, "derivations that end at x − mean",
    ),
    _function(
        "parameter_gradients_averaged", [(_THREE, "zip((dx, dweight / n, dbias / n), ")],
        "The gradients of weight and bias are means over the batch: they are sums.",
        OWN, "averaging twice",
    ),
    _function(
        "parameter_gradients_swapped", [(_THREE, "zip((dx, dbias, dweight), ")],
        "The gradients of weight and bias have changed places: they come in the order of forward's arguments.",
        OWN, "another framework's order",
    ),
    _function(
        "too_few_gradients", [(_ALL, "return tuple(gradient for gradient, _ in gradients)")],
        "Backward returns three gradients for eight arguments: there is one for each, None where there is no gradient.",
        OWN, "first own functions",
    ),
    _function(
        "autograd_differentiates",
        [("    @staticmethod\n    def forward(ctx, x,", "    @staticmethod\n    def apply(x,"),
         (_BY_BATCH, "batch_normalised = training or running_mean is None"),
         ("if ctx.batch_normalised:\n            if n", "if batch_normalised:\n            if n"),
         (_MEAN_MOVES, "running_mean.mul_(1 - momentum).add_(momentum * mean.detach())"),
         (_VAR_MOVES, "running_var.mul_(1 - momentum).add_(momentum * unbiased.detach())"), (_SAVED, "pass")],
        "Autograd differentiates this operation by operation: asked for is a Function, whose gradient you write.",
        OWN, "an apply that does what forward is meant to do",
    ),
    _function(
        "coupled_in_eval", [("if ctx.batch_normalised:\n            dx", "if True:\n            dx")],
        "In eval the coupling terms come off as well: the running statistics are constants there.",
        CONSTANTS, "one formula for both modes",
    ),
    _function(
        "batch_in_eval", [(_BY_BATCH, "ctx.batch_normalised = True")],
        "The batch normalises in eval too, and moves the running statistics: there they decide, and stay.",
        MODE, "the argument training not used",
    ),
    _function(
        "moved_in_eval",
        [("var = running_var.to(wide.dtype)",
          "var = running_var.to(wide.dtype)\n"
          "            running_mean.mul_(1 - momentum).add_(momentum * wide.mean(axes))")],
        "The running mean moves in eval: it may do so in training only.",
        ONE_CALL, "the update written outside of the branch",
    ),
    _function(
        "buffer_kept_in_ctx",
        [(_SAVED, "ctx.var, ctx.eps = var if ctx.batch_normalised else running_var, eps\n        " + _SAVED),
         (_TAKEN, _TAKEN + "\n        invstd = (ctx.var + ctx.eps).rsqrt()")],
        "Backward reads the running variance, which has moved by then: keep what forward made of it.",
        CONSTANTS, "PyTorch's own layer, whose gradient is silently wrong here",
    ),
    _function(
        "buffer_saved_for_backward",
        [(_SAVED, "ctx.eps = eps\n"
                  "        ctx.save_for_backward(x_hat, invstd if ctx.batch_normalised else running_var, weight)"),
         (_TAKEN, _TAKEN + "\n        if not ctx.batch_normalised:\n            invstd = (invstd + ctx.eps).rsqrt()")],
        "A running statistic itself is saved for backward, and training changes it: save a tensor of your own.",
        CONSTANTS, "the obvious thing to save",
    ),
    _function(
        "biased_remembered", [(_UNBIASED, "unbiased = var")],
        "running_var takes the biased variance: it remembers the unbiased one, n/(n − 1) times as large.",
        REMEMBERED, "one variance for both purposes",
    ),
    _function(
        "bessel_by_batch_size", [(_UNBIASED, "unbiased = var * len(x) / (len(x) - 1)")],
        "The variance that is remembered is corrected by the batch size: n counts all values of a channel.",
        REMEMBERED, "code for tables, used on images",
    ),
    _function(
        "weighs_the_old",
        [(_MEAN_MOVES, "running_mean.mul_(momentum).add_((1 - momentum) * mean)"),
         (_VAR_MOVES, "running_var.mul_(momentum).add_((1 - momentum) * unbiased)")],
        "momentum weighs the old value: in PyTorch it is the weight of the new one.",
        NEW_VALUE, "Keras's convention, with PyTorch's number",
    ),
    _function(
        "not_in_place",
        [(_MEAN_MOVES, "running_mean = (1 - momentum) * running_mean + momentum * mean"),
         (_VAR_MOVES, "running_var = (1 - momentum) * running_var + momentum * unbiased")],
        "The tensors that were passed in stay as they were: assigning to a name makes a new one.",
        ONE_CALL, "running_mean = … inside a function",
    ),
    _function(
        "given_other_memory",
        [(_MEAN_MOVES, "running_mean.data = (1 - momentum) * running_mean + momentum * mean"),
         (_VAR_MOVES, "running_var.data = (1 - momentum) * running_var + momentum * unbiased")],
        "The running statistics get other memory: a state dict, or whoever else shares theirs, sees no new values.",
        IN_PLACE, "running_mean.data = …, as it was written before no_grad",
    ),
    _function(
        "mean_only", [(_VAR_MOVES, "pass")],
        "Only the running mean moves: the running variance does so too.",
        ONE_CALL, "half a copy of two lines",
    ),
    _function(
        "weight_required", [(_SCALE, "scale = invstd * weight")],
        "Backward takes a weight for granted: without one, the scale is 1.",
        OWN, "backward written for affine layers",
    ),
    _function(
        "bias_required", [("if bias is not None:\n            y", "if True:\n            y")],
        "Forward takes a bias for granted: without one, nothing is added.",
        OWN, "forward written for affine layers",
    ),
    _function(
        "statistics_required", [(_BY_BATCH, "ctx.batch_normalised = training")],
        "Eval takes running statistics for granted: without them the batch normalises in both modes.",
        MODE, "the flag training taken for all there is to ask",
    ),
]

# --- bn_modes -------------------------------------------------------------------------------------------------------

_modes = _of("bn_modes")
_IS = "is_batchnorm(module)"
_WORD = '"train" if module.training else "eval"'
_NAMED = "model.named_modules()"

MODES = [
    _modes(
        "flag_of_the_model", [(_WORD, '"train" if model.training else "eval"')],
        "Every layer is given the mode of the model: each layer has a flag of its own.",
        WHO, "model.training taken for the truth",
    ),
    _modes(
        "three_kinds", [(_IS, "isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))")],
        "Only BatchNorm1d, 2d and 3d are found: the synchronised, the lazy and the course's layers are none of them.",
        WHO, "the isinstance line of most tutorials",
    ),
    _modes(
        "images_only", [(_IS, "isinstance(module, nn.BatchNorm2d)")],
        "Only BatchNorm2d is found: there are layers for other ranks, and other kinds.",
        WHO, "scripts written for one convolutional network",
    ),
    _modes(
        "torchs_only", [(_IS, "isinstance(module, nn.modules.batchnorm._BatchNorm)")],
        "PyTorch's layers are found, the course's own are not: they derive from the general module.",
        WHO, "the base class that torch's own tools look for",
    ),
    _modes(
        "every_norm", [(_IS, "isinstance(module, nn.modules.batchnorm._NormBase)")],
        "Instance normalisation is listed, and the course's layer is not: the base class is one too high.",
        WHO, "one base class too far up",
    ),
    _modes(
        "by_class_name", [(_IS, '"BatchNorm" in type(module).__name__')],
        "Layers are recognised by the name of their class: a derived one may have any name, and an impostor that one.",
        WHO, "string comparison on type names",
    ),
    _modes(
        "by_module_name", [(_IS, '("bn" in name or "norm" in name)')],
        "Layers are recognised by their name in the model: that is whatever the author liked.",
        WHO, "filters on parameter names",
    ),
    _modes(
        "all_modules", [(f" if {_IS}", "")],
        "Every module is listed: only Batch Normalization layers are asked for.",
        WHO, "a forgotten condition",
    ),
    _modes(
        "children_only", [(_NAMED, "model.named_children()")],
        "Only the outermost parts are looked at: layers inside them, and the model itself, are missing.",
        WHO, "named_children, or a loop over a Sequential",
    ),
    _modes(
        "last_part_of_the_name", [("name: " + _WORD, 'name.rpartition(".")[2]: ' + _WORD)],
        "Only the last part of the name is given: layers in different parts of the model may share it.",
        WHO, "names shortened for display",
    ),
    _modes(
        "flags_for_words", [("name: " + _WORD, "name: module.training")],
        "The flags themselves are returned: the words train and eval are asked for.",
        WHO, "module.training, returned as it is",
    ),
    _modes(
        "words_swapped", [(_WORD, '"eval" if module.training else "train"')],
        "The two words have changed places.",
        WHO, "slips of the pen",
    ),
    _modes(
        "shared_twice", [(_NAMED, "model.named_modules(remove_duplicate=False)")],
        "A layer that is used twice is listed twice: it is one layer, under its first name.",
        WHO, "options that list every use",
    ),
    _modes(
        "without_the_model", [(_IS, f"name and {_IS}")],
        "A model that is itself a layer is left out: its name is empty, and it counts.",
        WHO, "loops that skip the empty name",
    ),
]

# --- evaluating -----------------------------------------------------------------------------------------------------

_while = _of("evaluating")
_BEFORE = "before = [(module, module.training) for module in model.modules()]"
_SWITCH = "        model.eval()\n        yield model\n"
_RESTORE = "for module, training in before:\n            module.training = training"

EVALUATING = [
    _while(
        "train_afterwards", [(_RESTORE, "model.train()")],
        "Everything is in training afterwards: layers that had been frozen in eval have thawed.",
        TRAIN_AGAIN, "eval and train around a validation loop",
    ),
    _while(
        "flag_of_the_model", [(_RESTORE, "model.train(before[0][1])")],
        "Every module comes back in the model's own mode: each had one of its own.",
        FOR_A_WHILE, "was = model.training, in many libraries",
    ),
    _while(
        "stays_in_eval", [(_RESTORE, "pass")],
        "The model stays in eval afterwards: whoever trains on will train with constants.",
        TRAIN_AGAIN, "validation without the way back",
    ),
    _while(
        "not_after_exceptions", [("    try:\n        model.eval()", "    if True:\n        model.eval()"),
                                 ("    finally:\n", "    if True:\n")],
        "After an exception the modes do not come back: the way back has to run in every case.",
        FOR_A_WHILE, "context managers without try and finally",
    ),
    _while(
        "exception_swallowed", [("    finally:\n", "    except Exception:\n        pass\n    finally:\n")],
        "An exception inside disappears: restore the modes and let it through.",
        FOR_A_WHILE, "an except to be on the safe side",
    ),
    _while(
        "only_batchnorm_switched",
        [("        model.eval()\n", "        for module in model.modules():\n"
                                    "            module.training = module.training and not is_batchnorm(module)\n")],
        "Only Batch Normalization goes into eval: dropout and all other modules have to as well.",
        FOR_A_WHILE, "loops over the normalisation layers",
    ),
    _while(
        "only_batchnorm_restored",
        [("for module in model.modules()]", "for module in model.modules() if is_batchnorm(module)]")],
        "Only Batch Normalization layers get their mode back: all modules had one.",
        FOR_A_WHILE, "dictionaries of the layers one thinks of",
    ),
    _while(
        "children_only", [("for module in model.modules()]", "for module in model.children()]")],
        "Only the outermost parts get their mode back: what is inside them, and the model itself, does not.",
        FOR_A_WHILE, "children where modules was meant",
    ),
    _while(
        "no_grad_for_eval", [(_SWITCH, "        with torch.no_grad():\n            yield model\n")],
        "Gradients are switched off, the mode is not: these are two switches.",
        SWITCHES, "no_grad taken for eval",
    ),
    _while(
        "gradients_off_too",
        [(_SWITCH, "        model.eval()\n        with torch.no_grad():\n            yield model\n")],
        "Gradients are off inside, which nobody asked for: eval has them, and some who evaluate want them.",
        SWITCHES, "eval and no_grad, always written together",
    ),
    _while(
        "nothing_to_do_in_eval",
        [(_BEFORE, "if not model.training:\n        yield model\n        return\n    " + _BEFORE)],
        "A model whose own flag says eval is left alone: what is inside may be in training all the same.",
        WHO, "model.training taken for the truth, to save work",
    ),
    _while(
        "eval_when_made",
        [("@contextmanager\n", ""),
         # Half a step to the right, so that what restores the modes is inside as it stands.
         ("    try:\n" + _SWITCH + "    finally:\n",
          "    model.eval()\n\n    @contextmanager\n    def block():\n"
          "      try:\n        yield model\n      finally:\n"),
         (_RESTORE, _RESTORE + "\n\n    return block()")],
        "The model is in eval as soon as the context manager is made: eval begins where the block does.",
        FOR_A_WHILE, "a constructor that switches, as that of set_grad_enabled does",
    ),
    _while(
        "not_after_interrupts",
        [("    finally:\n", "    except Exception:\n"),
         (_RESTORE, f"{_RESTORE}\n        raise\n    else:\n        {_RESTORE}")],
        "After a keyboard interrupt the modes do not come back: that is no Exception, and ends many a validation loop.",
        FOR_A_WHILE, "except Exception where finally was meant",
    ),
]

# --- predict --------------------------------------------------------------------------------------------------------

_predict = _of("predict")
_WITH = "with evaluating(model), torch.no_grad():"
_CAT = "return torch.cat(outputs)"
_REMEMBER = _BEFORE + "\n    model.eval()\n    with torch.no_grad():"

PREDICT = [
    _predict(
        "batch_decides", [(_WITH, "with torch.no_grad():")],
        "The model predicts in training mode: every batch is normalised by itself, and moves the running statistics.",
        FORGOTTEN, "no_grad taken for eval",
    ),
    _predict(
        "graph_recorded", [(_WITH, "with evaluating(model):")],
        "The outputs hold a graph: eval does not switch gradients off.",
        SWITCHES, "eval taken for no_grad",
    ),
    _predict(
        "gradients_stay_off", [(_WITH, "torch.set_grad_enabled(False)\n    with evaluating(model):")],
        "Gradients are off for good: whoever trains on gets none. A switch has a way back, as a mode has.",
        SWITCHES, "set_grad_enabled as a line of its own",
    ),
    _predict(
        "parameters_frozen", [(_WITH, "model.requires_grad_(False)\n    with evaluating(model):")],
        "The model's parameters need no gradients from now on: recording is switched off, not the parameters.",
        SWITCHES, "requires_grad_(False) taken for no_grad",
    ),
    _predict(
        "stays_in_eval", [(_WITH, "model.eval()\n    with torch.no_grad():")],
        "The model stays in eval afterwards: every module leaves in the mode it came in.",
        TRAIN_AGAIN, "most prediction loops",
    ),
    _predict(
        "train_afterwards", [(_WITH, "model.eval()\n    with torch.no_grad():"), (_CAT, "model.train()\n    " + _CAT)],
        "Everything is in training afterwards: some modules had been in eval, and when the data fail all stay there.",
        TRAIN_AGAIN, "eval and train around a loop",
    ),
    _predict(
        "not_after_exceptions",
        [(_WITH, _REMEMBER), (_CAT, _RESTORE.replace("    " * 3, "    " * 2) + "\n    " + _CAT)],
        "When the data fail, the modes do not come back: the way back has to run in every case.",
        FOR_A_WHILE, "restoring at the end of the function",
    ),
    _predict(
        "last_batch_only", [(_CAT, "return outputs[-1]")],
        "Only the last batch is returned: keep the outputs of all of them.",
        PREDICTING, "a variable overwritten in the loop",
    ),
    _predict(
        "list_returned", [(_CAT, "return outputs")],
        "A list of batches comes back: one tensor, joined along the first axis, is asked for.",
        PREDICTING, "a forgotten last line",
    ),
    _predict(
        "stacked", [(_CAT, "return torch.stack(outputs)")],
        "The batches are stacked along a new axis: they are joined along the one they have.",
        PREDICTING, "stack and cat confused",
    ),
    _predict(
        "joined_along_features", [(_CAT, "return torch.cat(outputs, 1)")],
        "The batches are joined along the features: samples are on the first axis.",
        PREDICTING, "the wrong axis",
    ),
    _predict(
        "fetched_to_the_cpu", [("outputs.append(model(batch))", "outputs.append(model(batch).cpu())")],
        "The outputs are fetched to the CPU: they belong where the model and its data are, which may be a GPU.",
        DEVICE, "outputs.append(y.cpu()), to spare GPU memory",
    ),
    _predict(
        "lists_only", [("for batch in batches:", "for i in range(len(batches)):\n            batch = batches[i]")],
        "The batches are counted and indexed: anything that can be looped over once has to do, a generator too.",
        PREDICTING, "loops over indices",
    ),
    _predict(
        "small_batches_dropped",
        [("outputs.append(model(batch))", "outputs.append(model(batch if len(batch) > 1 else batch[:0]))")],
        "A batch of one sample is dropped: in eval it is a batch like any other.",
        PREDICTING, "work-arounds for the error that training raises",
    ),
]

# --- the clinic -----------------------------------------------------------------------------------------------------

_no_eval = _of("clinic_no_eval")
_SCORE = "return (model(x).argmax(1) == labels).double().mean().item()"
_AFTER = "right = (model(x).argmax(1) == labels).double().mean().item()\n    "
_IN_EVAL = "model.eval()\n    with torch.no_grad():"

NO_EVAL = [
    _no_eval(
        "batch_decides", [(_WITH, "with torch.no_grad():")],
        "The score is taken in whatever mode the model is: in training, every sample's neighbours have a say.",
        FORGOTTEN, "the patient as it came in",
    ),
    _no_eval(
        "stays_in_eval", [(_WITH, _IN_EVAL)],
        "The score is right, and the model is in eval for good: it leaves in the modes it came in.",
        TRAIN_AGAIN, "half a repair",
    ),
    _no_eval(
        "train_afterwards", [(_WITH, _IN_EVAL), (_SCORE, _AFTER + "model.train()\n    return right")],
        "The score is right, and everything is in training afterwards: some modules came in eval.",
        TRAIN_AGAIN, "eval and train around the line",
    ),
    _no_eval(
        "flag_of_the_model",
        [(_WITH, "was = model.training\n    " + _IN_EVAL), (_SCORE, _AFTER + "model.train(was)\n    return right")],
        "The score is right, and every module is in the model's own mode afterwards: each had one of its own.",
        FOR_A_WHILE, "was = model.training",
    ),
    _no_eval(
        "only_batchnorm_switched",
        [(_WITH, "for module in model.modules():\n"
                 "        module.training = module.training and not is_batchnorm(module)\n    with torch.no_grad():")],
        "Only Batch Normalization went into eval, and stays there: other modules have modes, too.",
        FOR_A_WHILE, "loops over the normalisation layers",
    ),
    _no_eval(
        "percent", [(_SCORE, _SCORE.replace("return ", "return 100 * "))],
        "The score is in percent: a fraction from 0 to 1 is asked for.",
        FORGOTTEN, "scores for printing",
    ),
]

_plain = _of("clinic_plain_buffers")
_REGISTER = 'self.register_buffer("running_mean", torch.zeros(num_features))'
_CENTRE_MOVES = "self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)"

PLAIN_BUFFERS = [
    _plain(
        "plain_attribute", [(_REGISTER, "self.running_mean = torch.zeros(num_features)")],
        "The module does not know about its running mean: it is neither saved nor moved with the rest.",
        STATE, "the patient as it came in",
    ),
    _plain(
        "parameter", [(_REGISTER, "self.running_mean = nn.Parameter(torch.zeros(num_features), requires_grad=False)")],
        "The running mean is a parameter: optimisers see it, decay it, and count it.",
        STATE, "the other way to get something into the state dict",
    ),
    _plain(
        "not_saved", [(_REGISTER, _REGISTER[:-1] + ", persistent=False)")],
        "The running mean moves with the module and is not saved: it is missing in the state dict.",
        STATE, "buffers with persistent=False",
    ),
    _plain(
        "replaced",
        [(_CENTRE_MOVES, "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean")],
        "Every step puts a new tensor, or new memory, in the running mean's place: who holds the old hears nothing.",
        STATE, "assignment in forward",
    ),
    _plain(
        "graph_recorded", [("with torch.no_grad():\n            self", "if True:\n            self")],
        "The running mean holds a graph after training: remember it out of autograd's sight.",
        NO_GRAPH, "the next patient's fault",
    ),
    _plain(
        "mean_detached", [("        mean = x.mean(0)\n", "        mean = x.detach().mean(0)\n")],
        "The batch's mean is cut off from x: it moves with x, and in training that is part of the gradient.",
        TRAINING, "a detach that cuts off more than what is remembered",
    ),
    _plain(
        "counts_batches",
        [(_REGISTER, _REGISTER + '\n        self.register_buffer("num_batches_tracked", torch.tensor(0))')],
        "Something else is in the state dict now: old checkpoints do not fit any more.",
        STATE, "buffers copied from PyTorch's layer",
    ),
    _plain(
        "moves_in_eval",
        [("            return x - self.running_mean\n",
          "            y = x - self.running_mean\n"
          "            self.running_mean.mul_(1 - self.momentum).add_(self.momentum * x.detach().mean(0))\n"
          "            return y\n")],
        "The running mean moves in eval: there it is used, and stays.",
        ONE_CALL, "an update in both branches",
    ),
]

_graph = _of("clinic_graph_in_buffers")
_GRAPH_UPDATE = "running_mean.mul_(1 - momentum).add_(momentum * x.mean(axes))"

GRAPH_IN_BUFFERS = [
    _graph(
        "graph_recorded", [("with torch.no_grad():\n        " + _GRAPH_UPDATE, _GRAPH_UPDATE)],
        "The update is part of the graph: the running mean needs gradients, and drags every step behind it.",
        NO_GRAPH, "the patient as it came in",
    ),
    _graph(
        "not_in_place",
        [(_GRAPH_UPDATE, "running_mean = (1 - momentum) * running_mean + momentum * x.mean(axes)")],
        "The tensor that came in stays as it was: assigning to a name makes a new one.",
        STATE, "running_mean = … inside a function",
    ),
    _graph(
        "caller_detached", [("with torch.no_grad():\n", "x.detach_()\n    with torch.no_grad():\n")],
        "x itself is cut off from its graph: the caller's gradients end here.",
        NO_GRAPH, "detach_ where detach was meant",
    ),
    _graph(
        "gradients_stay_off", [("    with torch.no_grad():\n", "    torch.set_grad_enabled(False)\n    if True:\n")],
        "Gradients are off for good: whoever trains on gets none. Switch them off for the length of the update.",
        SWITCHES, "set_grad_enabled as a line of its own",
    ),
    _graph(
        "input_overwritten",
        [(_GRAPH_UPDATE, "mean = x.mean(axes)\n        x.data.sub_(mean.view((1, -1) + (1,) * (x.dim() - 2)))\n"
                         "        running_mean.mul_(1 - momentum).add_(momentum * mean)")],
        "x is centred in place: only the running mean is to move.",
        NO_GRAPH, "x.data, to get out of autograd's sight",
    ),
    _graph(
        "weighs_the_old", [(_GRAPH_UPDATE, "running_mean.mul_(momentum).add_((1 - momentum) * x.mean(axes))")],
        "momentum weighs the old value: it is the weight of the new one.",
        NEW_VALUE, "rewriting more than was sick",
    ),
    _graph(
        "batch_axis_only", [("axes = (0, *range(2, x.dim()))", "axes = (0,)")],
        "The mean is taken over axis 0 only: a channel of images has one mean, over all its positions.",
        NO_GRAPH, "code for tables, used on images",
    ),
]

_grad_mode = _of("clinic_grad_mode")
_BOTH = "with evaluating(model), torch.enable_grad():"
_GRADIENT = "return torch.autograd.grad(model(leaf).sum(), leaf)[0]"

GRAD_MODE = [
    _grad_mode(
        "training_for_gradients",
        [(_BOTH, "model.train()  # eval mode would switch the gradients off\n    with torch.enable_grad():")],
        "The model is put into training to get gradients: eval has them, too, those of its predictions.",
        SWITCHES, "the patient as it came in",
    ),
    _grad_mode(
        "company_counts", [(_BOTH, "with torch.enable_grad():")],
        "The mode is left to chance: the model that is asked about is the one that predicts, in eval.",
        SWITCHES, "the line with train deleted, and nothing in its place",
    ),
    _grad_mode(
        "stays_in_eval", [(_BOTH, "model.eval()\n    with torch.enable_grad():")],
        "The gradient is right, and the model is in eval for good: it leaves in the modes it came in.",
        TRAIN_AGAIN, "half a repair",
    ),
    _grad_mode(
        "callers_switch", [(_BOTH, "with evaluating(model):")],
        "Where the caller has switched gradients off there are none: switch them on for as long as it takes.",
        SWITCHES, "the second switch forgotten",
    ),
    _grad_mode(
        "gradients_stay_on", [(_BOTH, "torch.set_grad_enabled(True)\n    with evaluating(model):")],
        "Gradients are on for good: where the caller had switched them off, they are recorded from now on.",
        SWITCHES, "set_grad_enabled as a line of its own",
    ),
    _grad_mode(
        "parameters_frozen", [(_BOTH, "model.requires_grad_(False)\n    " + _BOTH)],
        "The model's parameters need no gradients from now on: they are to leave as they came.",
        SWITCHES, "requires_grad_(False), to keep the parameters' gradients clean",
    ),
    _grad_mode(
        "accumulated", [(_GRADIENT, "model(leaf).sum().backward()\n        return leaf.grad")],
        "The parameters' gradients have grown: ask for the gradient of the input alone.",
        SWITCHES, "backward, where one gradient is wanted",
    ),
    _grad_mode(
        "input_marked", [("leaf = x.detach().requires_grad_()", "leaf = x.requires_grad_()")],
        "The caller's x needs gradients from now on: work on a tensor of your own.",
        SWITCHES, "x.requires_grad_()",
    ),
    _grad_mode(
        "averaged", [(_GRADIENT, _GRADIENT.replace("sum()", "mean()"))],
        "The outputs are averaged: the gradient of their sum is asked for.",
        SWITCHES, "the habit of losses",
    ),
    _grad_mode(
        "absolute", [(_GRADIENT, _GRADIENT + ".abs()")],
        "The signs are gone: the gradient itself is asked for.",
        SWITCHES, "pictures of saliency",
    ),
    _grad_mode(
        "graph_kept", [(_GRADIENT, _GRADIENT.replace("leaf)[0]", "leaf, create_graph=True)[0]"))],
        "The result holds a graph: it keeps the whole computation alive.",
        NO_GRAPH, "create_graph=True to silence an error",
    ),
]

_momentum = _of("clinic_momentum")
_WEIGHED = "return (1 - momentum) * running + momentum * batch"

MOMENTUM = [
    _momentum(
        "weighs_the_old", [(_WEIGHED, "return momentum * running + (1 - momentum) * batch")],
        "momentum weighs the old value: with 0, the statistic so far is forgotten and not kept.",
        NEW_VALUE, "the patient as it came in",
    ),
    _momentum(
        "in_place", [(_WEIGHED, "return running.mul_(1 - momentum).add_(momentum * batch)")],
        "The statistic that came in is changed: a new tensor is asked for.",
        NEW_VALUE, "the update of a layer",
    ),
    _momentum(
        "no_decay", [(_WEIGHED, "return running + momentum * batch")],
        "The old value keeps its full weight: the two weights add up to 1.",
        NEW_VALUE, "half of the formula",
    ),
    _momentum(
        "velocity", [(_WEIGHED, "return momentum * running + batch")],
        "This is the momentum of an optimiser: here the two weights add up to 1.",
        NEW_VALUE, "gradient descent with momentum",
    ),
    _momentum(
        "constant_weight", [(_WEIGHED, "return 0.9 * running + 0.1 * batch")],
        "The argument momentum is not used: 0.1 is only PyTorch's default.",
        NEW_VALUE, "numbers copied from a table",
    ),
]

_biased = _of("clinic_biased_var")
_VAR_UPDATE = "running_var.mul_(1 - momentum).add_(momentum * x.var(axes, correction=1))"

BIASED_VAR = [
    _biased(
        "divided_by_n", [("correction=1", "correction=0")],
        "The biased variance, divided by n, goes in: what is remembered estimates the variance of all data.",
        REMEMBERED, "the patient as it came in",
    ),
    _biased(
        "corrected_twice",
        [("x.var(axes, correction=1)", "x.var(axes, correction=1) * x[:, :1].numel() / (x[:, :1].numel() - 1)")],
        "The variance is corrected twice: it was unbiased already.",
        REMEMBERED, "n/(n − 1) times torch's default",
    ),
    _biased(
        "bessel_by_batch_size", [("x.var(axes, correction=1)", "x.var(axes, correction=0) * len(x) / (len(x) - 1)")],
        "The correction counts samples: n counts all values of a channel, its positions included.",
        REMEMBERED, "code for tables, used on images",
    ),
    _biased(
        "input_overwritten",
        [(_VAR_UPDATE, "mean = x.mean(axes)\n        x.data.sub_(mean.view((1, -1) + (1,) * (x.dim() - 2)))\n        "
                       + _VAR_UPDATE)],
        "x is centred in place: only the running variance is to move.",
        REMEMBERED, "x.data, to get out of autograd's sight",
    ),
    _biased(
        "weighs_the_old",
        [(_VAR_UPDATE, "running_var.mul_(momentum).add_((1 - momentum) * x.var(axes, correction=1))")],
        "momentum weighs the old value: it is the weight of the new one.",
        NEW_VALUE, "rewriting more than was sick",
    ),
    _biased(
        "standard_deviation", [("x.var(", "x.std(")],
        "The standard deviation goes in: the variance is its square.",
        REMEMBERED, "std and var confused",
    ),
    _biased(
        "not_in_place",
        [(_VAR_UPDATE, "running_var = (1 - momentum) * running_var + momentum * x.var(axes, correction=1)")],
        "The tensor that came in stays as it was: assigning to a name makes a new one.",
        STATE, "running_var = … inside a function",
    ),
    _biased(
        "graph_recorded", [("with torch.no_grad():\n        " + _VAR_UPDATE, _VAR_UPDATE)],
        "The update is part of the graph: the running variance needs gradients from now on.",
        NO_GRAPH, "an earlier patient's fault",
    ),
]

# --- accepts --------------------------------------------------------------------------------------------------------

_accepts = _of("accepts")
_AGREES = '"""One forward pass without gradients: output, state, and what must not change."""\n'
_LEARNS = '"""One forward and backward pass: every gradient, and no graph left behind in a buffer."""\n'
_ONLY_IN_TRAINING = "        if not training:\n            return True\n"

ACCEPTS = [
    _accepts(
        "accepts_everything", [("return all(probe() for probe in probes)", "return True")],
        "All layers are accepted, wrong ones too: one pass in one mode on a new layer shows next to nothing.",
        TESTING, "tests that compare one forward pass, or cannot fail at all",
    ),
    _accepts(
        "exact_equality",
        [("return torch.allclose(got.double(), want.double(), rtol=rtol, atol=atol)",
          "return torch.equal(got.double(), want.double())")],
        "Right layers are rejected: written differently they differ in the last digits, so compare with a tolerance.",
        TESTING, "== on floating-point numbers",
    ),
    _accepts(
        "never_in_eval",
        [(_AGREES, _AGREES + _ONLY_IN_TRAINING), (_LEARNS, _LEARNS + _ONLY_IN_TRAINING),
         ("for training in (True, False):\n            for shape", "for training in (True,):\n            for shape"),
         ("for training in (True, False):\n                layer", "for training in (True,):\n                layer")],
        "The layer is looked at in training only: what it does in eval, and to its buffers there, is not.",
        TESTING, "tests of a forward pass on a new layer",
    ),
    _accepts(
        "no_gradients", [(_LEARNS, _LEARNS + "        return agrees(layer, oracle, x, training)\n")],
        "Gradients are never asked for: neither wrong ones nor a graph in a buffer shows.",
        TESTING, "tests of outputs",
    ),
    _accepts(
        "gradients_follow_the_mode",
        [("with torch.no_grad():\n            y, want", "with torch.set_grad_enabled(training):\n            y, want"),
         (_LEARNS, _LEARNS + "        if not training:\n            return agrees(layer, oracle, x, training)\n"),
         ("        trains_when_frozen,\n", "")],
        "Training is looked at with gradients and eval without: a layer that confuses the two switches passes.",
        TESTING, "tests written like a training loop",
    ),
    _accepts(
        "large_batches_only",
        [("[(8, 3), (5, 3), (3, 3)], [(5, 3, 4, 3), (1, 3, 2, 3), (6, 3, 1, 1)]",
          "[(400, 3), (500, 3)], [(50, 3, 4, 3), (1, 3, 20, 30)]"),
         ("rtol=1e-3, atol=1e-4):\n        \"\"\"Of", "rtol=2e-2, atol=2e-2):\n        \"\"\"Of"),
         ("drawn(4, 3, 5, 2).c", "drawn(40, 3, 10, 12).c"), ("drawn(4, 6, 5, 4)[", "drawn(40, 6, 10, 24)["),
         ("drawn(3, 7).t()", "drawn(3, 700).t()")],
        "With many values per channel and a wide tolerance, n and n − 1 look the same: take few, and a narrow one.",
        TESTING, "tests on batches of the size one trains with",
    ),
    _accepts(
        "state_unseen",
        [("return got.keys() == want.keys() and all(close(got[key], want[key], **tolerance) for key in want)",
          "return True"),
         ("            and all(after[key].data_ptr() == before[key].data_ptr() for key in before)\n", ""),
         ("                    and all(wide[key].dtype == v.dtype for key, v in oracle.state_dict().items())\n", ""),
         ("        if not fresh:\n", "        if False:\n"),
         ("close(got[key], want[key]) for key in (\"running",
          "close(got.get(key, want[key].float()), want[key]) for key in (\"running"),
         ("            oracle.load_state_dict(layer.state_dict())", "            oracle(lifted(layouts[0]))"),
         ("        keeps_its_state,\n", "")],
        "The state dict is never looked at: whether statistics are saved and counted does not show in the outputs.",
        TESTING, "tests of outputs and gradients",
    ),
]
# fmt: on

MISCONCEPTIONS = [
    *EVAL_BACKWARD,
    *FUNCTION,
    *MODES,
    *EVALUATING,
    *PREDICT,
    *NO_EVAL,
    *PLAIN_BUFFERS,
    *GRAPH_IN_BUFFERS,
    *GRAD_MODE,
    *MOMENTUM,
    *BIASED_VAR,
    *ACCEPTS,
]
