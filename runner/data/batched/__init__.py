"""Batched forms of torchvision's transforms: a whole batch at once, with each sample's own draws.

Read `forms.py` (the list of transforms), then `chain.py`.
"""
