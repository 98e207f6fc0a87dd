"""The adapters, one file per method; the registry finds them."""
