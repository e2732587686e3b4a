"""Previews: tables and pictures of what a config will do, one file a wing."""
