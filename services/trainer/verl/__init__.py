"""verl on Ray: the only folder that imports verl. It runs in the runner and in Ray's workers, never in a service.

`patches/plugin.py` is what verl loads in every process; `runner.py` is the process that carries out a launch plan.
"""
