"""Training steps as what is measured: the loss stage of a cached batch alone, and a whole step of an encoder."""
