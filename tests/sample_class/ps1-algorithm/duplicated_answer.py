# like: right_numpy
# then: duplicate batch-norm-forward
