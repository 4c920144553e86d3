"""Operations on rows, whose limit is memory bandwidth: what is computed, who computes it, and what is right."""
