"""The panels, one for each step of the work. Each also works on its own; `Lab` combines them."""
