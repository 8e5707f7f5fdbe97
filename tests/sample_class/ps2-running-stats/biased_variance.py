# like: right_plain
# %% BatchNorm with
                    self.running_var.mul_(1 - m).add_(m * var * n / (n - 1))
# ---- becomes
                    self.running_var.mul_(1 - m).add_(m * var)
