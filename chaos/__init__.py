"""Everything that can go wrong goes wrong, from a printed seed, and afterwards nothing may be missing.

    python -m chaos --seed 7            one run; `make chaos SEEDS=20` runs twenty

`plan` draws the faults, `world` runs the real processes, `traffic` is the load, `strikes` does the harm, `run` tells
the whole story: load, faults, healing, quiet, evidence, verdict.
"""
