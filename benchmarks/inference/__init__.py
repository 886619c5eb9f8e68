"""Success against latency of generative policies: see `python -m benchmarks.inference --help`."""
