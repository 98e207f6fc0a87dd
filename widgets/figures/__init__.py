"""What the panels show: figures, tables, and the views of the Inspect panel."""
