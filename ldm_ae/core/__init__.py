"""Code that every other package may use and that depends on none of them."""
