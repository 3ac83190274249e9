"""Search paths: what a trajectory of an agentic search did, and the steps that it is measured against.

`path.py` reads a trajectory, `annotation.py` and `references.py` say what an expert would search, `matching.py` which
steps the queries carried out, `scores.py` the numbers that a path reward rests on.
"""
