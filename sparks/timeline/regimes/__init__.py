"""Regimes: do heads accumulate, or come and go. `regime` has the numbers and the verdict.

`evidence` puts them into words, `tables` into frames; `turnover` is how circuits move in time.
"""
