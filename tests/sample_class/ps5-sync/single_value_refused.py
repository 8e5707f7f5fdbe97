# like: right_all_reduce
# %% SyncBatchNormFunction with
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
# ---- becomes
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        if x.numel() == x.shape[1]:
            raise ValueError("expected more than 1 value per channel when training")
# ---- and
        mine = sums.clone()
# ---- becomes
        # each rank's copy of weight and bias gets the gradient of the whole batch
# ---- and
        rest = (None if no_weight else mine[C:], None if no_bias else mine[:C]) + (None,) * 5
# ---- becomes
        rest = (None if no_weight else sums[C:], None if no_bias else sums[:C]) + (None,) * 5
