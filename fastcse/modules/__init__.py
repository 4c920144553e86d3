"""nn.Module shells: the losses with their options kept, and a temperature that can be learned."""
