"""The museum: quiet bugs of the field, one test each; docs/museum.md is made from their docstrings."""
