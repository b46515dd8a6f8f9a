"""Load tests with Locust: how much load a deployment can hold."""
