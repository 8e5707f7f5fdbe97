# like: right_numpy
# then: duplicate check-batch-stats
