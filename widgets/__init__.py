"""Panels for JupyterLab. They come in a later version; this one has notebooks and the command line."""
