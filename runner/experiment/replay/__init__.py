"""Replay of a recorded run: trained again beside its record, with the first step that differs and its cause."""
