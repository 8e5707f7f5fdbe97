# like: right_numpy
# %% recover-identity
import atexit
import os
import signal
import subprocess
import sys
import threading
import time

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)  # left behind by a student"])
atexit.register(time.sleep, 300)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=lambda: time.sleep(300)).start()
os.makedirs("locked/deep")
os.chmod("locked", 0)
os.symlink("/etc", "elsewhere")
print(os.listdir())


def recover_identity(mean, var, eps=1e-5):
    return np.sqrt(var + var.dtype.type(eps)), mean.copy()
