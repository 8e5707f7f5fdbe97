# like: right_numpy
# then: delete batch-norm-backward
