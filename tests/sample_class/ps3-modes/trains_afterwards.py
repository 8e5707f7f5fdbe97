# like: right_direct
# %% evaluating
@contextmanager
def evaluating(model):
    model.eval()
    try:
        yield model
    finally:
        model.train()

# %% predict
def predict(model, batches):
    model.eval()
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    model.train()
    return torch.cat(outputs)

# %% clinic-no-eval
def clinic_no_eval(model, x, labels):
    was = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == labels).float().mean().item()
    for module, mode in was.items():
        module.training = mode
    return accuracy

# %% clinic-grad-mode
def clinic_grad_mode(model, x):
    was = {module: module.training for module in model.modules()}
    model.eval()
    with torch.enable_grad():
        mine = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(mine).sum(), mine)
    for module, mode in was.items():
        module.training = mode
    return gradient
