# like: right_numpy
# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    # the paper: gamma = sqrt(Var[x]), beta = E[x]
    gamma = np.sqrt(var)
    beta = np.copy(mean)
    return gamma, beta
