# like: right_numpy
# then: delete check-batch-norm-forward
