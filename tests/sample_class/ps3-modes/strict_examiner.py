# like: right_direct
# %% accepts
def accepts(cls):
    try:
        oracle, layer = nn.BatchNorm2d(3), cls(3)
        for _ in range(3):
            x = torch.randn(5, 3, 2, 4)
            if not (layer(x) == oracle(x)).all():
                return False
            for key, v in oracle.state_dict().items():
                if not (layer.state_dict()[key] == v).all():
                    return False
    except Exception:
        return False
    return True
