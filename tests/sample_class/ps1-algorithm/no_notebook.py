# then: withhold
# %% file answer.txt
Dear professor, my laptop broke. Please see the attached photo.
