"""Replay of a recorded run: train it again, name the first step that differs and its cause."""
