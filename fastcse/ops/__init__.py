"""Custom ops: check the arguments, choose the backend, save what the backward pass needs."""
