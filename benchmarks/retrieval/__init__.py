"""Hard negatives in use: training with them on SciFact, and how many of them are false on Vaswani."""
