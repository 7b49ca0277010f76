# make run       set up (the first time: a few minutes) and let the demo model answer inside 512 MiB
# make test      set up for tests, and run them
# make test-all  the same, with random trials many times each instead of a few times, and more cases
# make test-vulkan  tests on a GPU backend without a GPU, with a second build of the engine
# make check     make test with formatting, lint and types: what has to pass before a commit
# make clean     remove everything that these made

.PHONY: run test test-all test-vulkan check clean

run:
	@scripts/setup run
	.venv/bin/memfit run demo --ram 512MiB --max-tokens 96 \
		-p "Explain in three sentences why the sky is blue."

test:
	@scripts/setup test
	scripts/test

test-all:
	@scripts/setup test
	scripts/test all

test-vulkan:
	@scripts/setup test
	scripts/vulkan -m pytest tests/vulkan

check:
	@scripts/setup test
	scripts/check

clean:
	rm -rf .venv .vulkan dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
