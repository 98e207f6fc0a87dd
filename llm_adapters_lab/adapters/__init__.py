"""The adapters, one file each; the folder imports itself."""
