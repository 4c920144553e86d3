"""K-means over all points, beside everyone who computes it: what is clustered, who does it, and what is right."""
