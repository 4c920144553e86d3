"""One loss, one file: its formula, its transform, its public function. No kernels here."""
