# like: right_numpy
# then: rename algorithm (1) final.ipynb
