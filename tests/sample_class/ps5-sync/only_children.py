# like: right_all_reduce
# %% convert-sync-batchnorm
def convert_sync_batchnorm(model, group=None):
    for name, child in model.named_children():
        if "BatchNorm" in type(child).__name__:
            new = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine,
                                child.track_running_stats, process_group=group)
            new.load_state_dict(child.state_dict())
            setattr(model, name, new)
    return model
