"""`fastcse cluster`: k-means of the rows of an .npy file, into an .npy file of labels and one of centroids.

`files` (rows in, results out), `job` (the whole) and `command` (the command line).
"""
