"""`python -m memfit` is `memfit`."""

from memfit.cli.main import main

main()
