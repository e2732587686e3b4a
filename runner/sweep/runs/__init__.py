"""Recorded runs as a table: found below a folder, indexed, filtered, compared, removed, archived.

Read `address.py`, then `index.py`, then `listing.py`.
"""
