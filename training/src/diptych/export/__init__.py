"""From a run to a deployable Triton repository: TorchScript, parity gate, version directories, manifest."""
