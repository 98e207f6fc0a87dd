"""The packaged mixture of experts `nano-moe`, made by the recipe of `nano`."""
