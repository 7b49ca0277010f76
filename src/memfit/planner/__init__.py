"""Budgets and workloads in, plans out. Pure: it asks the oracle it is given and touches nothing else."""
