"""Property-based tests: inverses and invariants over generated inputs."""
