"""Tokenize the data of a training before it starts: the program of `python -m megatron_lpc.preprocess_data`.

python tools/preprocess_data.py --config FILE.yaml [--flag value …]
"""

from megatron_lpc.preprocess_data import main

if __name__ == "__main__":
    main()
