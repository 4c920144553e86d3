"""K-means over all points, on the tiles of the losses."""
