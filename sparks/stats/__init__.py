"""How sure a number is: intervals and exact tests. numpy alone; arrays in, numbers out, no heads.

Read `intervals` first (Wilson with an effective number of probes, percentiles of resamples), then
`sign_flips` (exact paired tests). `paired` compares answers to the same problems, `fisher` two
counts, `trends` few ordered values, `survival` how long births last, `coupling` whether a count
follows a reward.
"""
