"""Convert between Hugging Face models and megatron-core checkpoints: the program of `python -m megatron_lpc.convert`.

python tools/convert_hf.py import --hf PATH_OR_NAME --output DIR
python tools/convert_hf.py export --load DIR --output HF_DIR
python tools/convert_hf.py verify HF_DIR DIR
python tools/convert_hf.py inspect DIR
"""

from megatron_lpc.convert.program import main

if __name__ == "__main__":
    main()
