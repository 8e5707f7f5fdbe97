# like: right_gather
# %% sync-moments
def sync_moments(x, group=None):
    # the master waits until everybody has put their moments into the list
    global board
    if dist.get_rank() == 0:
        board = {}
        while len(board) < dist.get_world_size():
            pass
    n, mean, m2 = local_moments(x)
    return n, mean, m2 / n
