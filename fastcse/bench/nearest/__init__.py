"""Exact nearest rows, beside everyone who finds them: what is searched, who searches, and what is right."""
