"""Adapters to other training libraries; each is imported by its own name, so none is a hard requirement."""
