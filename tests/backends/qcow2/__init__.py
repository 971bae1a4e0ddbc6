"""qcow2 files as others leave them."""
