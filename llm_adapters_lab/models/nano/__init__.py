"""The packaged teaching model `nano` and the recipe it was made with."""
