"""DeepSpeed's own kernels, which it compiles where they are first used."""


def buildable() -> list[str]:
    """Return the names of those that this machine's compilers and libraries could compile."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    kernels = {name: builder for name, builder in ALL_OPS.items() if name != "deepspeed_not_implemented"}
    return sorted(name for name, builder in kernels.items() if builder.is_compatible(verbose=False))
