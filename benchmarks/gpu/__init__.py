"""All that one GPU can tell, part by part: `python -m benchmarks.gpu --help`.

Needs the standard library only, so that a Python with nothing but torch and Triton can start it.
"""
