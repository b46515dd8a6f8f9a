"""Says what a deployment can hold: load tests with Locust, and benchmarks."""
