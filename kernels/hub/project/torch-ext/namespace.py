"""Where `torch_ops` registers: the namespace of this build alone, so that two can be loaded."""

from ._ops import add_op_namespace_prefix

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
