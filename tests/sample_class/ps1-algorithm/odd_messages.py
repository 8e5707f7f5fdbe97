# like: right_numpy
# %% batch-stats
from ipykernel.kernelapp import IPKernelApp

kernel = IPKernelApp.instance().kernel


def send(kind, content, **header):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent("shell"), ident=kind.encode())


send("stream", {"name": 7, "text": None})
send("stream", {"name": "neither", "text": "a"})
send("execute_result", {"data": [1], "metadata": None, "execution_count": "<script>"})
send("display_data", {"data": {"text/plain": {"a": ["b"]}, "image/png": 5}, "metadata": {}, "transient": 5})
send("error", {"ename": None, "evalue": 3, "traceback": "none"})
send("comm_open", {"comm_id": "c", "target_name": "jupyter.widget", "data": {"state": 3, "buffer_paths": [1]}})
send("comm_msg", {})
send("update_display_data", {"data": 1, "transient": {"display_id": "d"}})
send("clear_output", {})
send("status", {})
send("nonsense", {"execution_count": {"deep": ["<script>alert(1)</script>"]}})
send("execute_input", {"execution_count": "<script>alert(2)</script>", "code": ""})


def batch_stats(x):
    print("\ud800 half a character, \x00 and \x1b[0m")
    if x.size // x.shape[1] < 2:
        raise ValueError("\udfff")
    axes = (0,) + tuple(range(2, x.ndim))
    return x.mean(axis=axes), x.var(axis=axes)
