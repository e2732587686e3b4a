"""Plain datasets and transforms; add yours here or in a `datasets` package of your own project."""
