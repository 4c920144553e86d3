"""`fastcse train`."""
