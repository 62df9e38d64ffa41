"""Named by annotations of megatron-core's `TEFusedMLP`, which this project does not use."""


class Sequential:
    pass


class FusibleOperation:
    pass
