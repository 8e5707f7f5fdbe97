# like: right_numpy
# then: truncate
