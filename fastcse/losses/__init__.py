"""One loss, one file: formula, transform, public function. No kernels here."""
