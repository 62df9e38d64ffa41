"""FP8 tensors: megatron-core asks whether a parameter is one. None is."""


class QuantizedTensor:
    pass
