"""`python -m megatron_lpc.convert`."""

from megatron_lpc.convert.program import main

if __name__ == "__main__":
    main()
