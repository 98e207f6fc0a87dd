"""The panels: each stands alone, `Lab` holds all of them."""
