# like: right_plain
# %% steps-to-forget
def steps_to_forget(momentum, fraction):
    left, k = 1.0, 0
    while left > fraction:
        left = left * (1 - momentum) + momentum  # the average of what is left
        k += 1
    return k
