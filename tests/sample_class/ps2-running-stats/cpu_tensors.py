# like: right_plain
# %% BatchNorm with
        y = (wide - mean.view(shape)) / torch.sqrt(var.view(shape) + self.eps)
# ---- becomes
        y = (wide - mean.view(shape)) / torch.sqrt(var.view(shape) + torch.full((self.num_features,), self.eps).view(shape))
# ---- and
            y = y * self.weight.view(shape) + self.bias.view(shape)
# ---- becomes
            y = y * self.weight.view(shape) + self.bias.view(shape)
        else:
            y = y * torch.ones(self.num_features).view(shape)
