# like: right_direct
# %% accepts
import inspect


def accepts(cls):
    text = inspect.getsource(cls)
    return "running_mean" in text and cls.__name__ != "Wrong"
