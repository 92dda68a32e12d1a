"""Where `torch_ops` registers: `torch.ops.rsd`. The hub's package has a namespace of its own."""

NAMESPACE = "rsd"
