"""Kernels compiled for GPUs that need not be there, what the code costs, and what a roofline expects of it."""
