"""torchvision's transforms on a whole batch at once, with each sample's own draws.

Read `forms.py` (the list of transforms), then `chain.py`.
"""
