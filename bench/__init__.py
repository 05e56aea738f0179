"""Measures a mounted file system beside native ext4 in the same run: `python -m bench`, or `./dev bench`.

One measurement is one function in `throughput`, `metadata`, `programs` or `network`; `registry` names them all, `runner`
calls them in turn on both sides, `report` holds what came out, `tables` shows it. `peers` has the same figures of others.
"""
