"""Many runs of one command line: their points, where they run, what became of them.

Read `interfaces.py`, `multirun.py`, `controller.py`; then `space/` (which points), `search/` (which next),
`executors/` (where they run), `report/` (what came of them). May import `experiment` and everything below it.
"""
