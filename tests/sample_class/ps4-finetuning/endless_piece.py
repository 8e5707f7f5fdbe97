# like: right_by_hand
# %% recalibrate
def recalibrate(model, batches):
    model.eval()
    before = None
    while True:  # until the running statistics have converged
        for batch in batches:
            model(batch)
        now = torch.cat([layer.running_mean for layer in batchnorm_layers(model).values()])
        if before is not None and not torch.allclose(now, before):
            break
        before = now.clone()
    return model
