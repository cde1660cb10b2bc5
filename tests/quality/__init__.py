"""Is the order random enough? Statistical tests of permutations, with a control and bad examples beside.

Run `python -m tests.quality --tier small` (seconds) or `--tier full` (about half an hour).
"""
