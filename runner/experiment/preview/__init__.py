"""Previews: tables and pictures of a config's effects, one file per wing."""
