"""Programs: a model's forward pass as a short list of operations, and the executors' common contract."""
