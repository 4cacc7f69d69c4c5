"""The DAG of a study, and the ways to run it."""
