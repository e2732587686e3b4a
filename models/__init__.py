"""Plain modules with plain arguments; add yours here or in a `models` package of your own project."""
