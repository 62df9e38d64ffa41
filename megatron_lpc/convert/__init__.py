"""Conversion between Hugging Face models and megatron-core checkpoints.

The only package that knows Hugging Face's tensor names. `program` is the command line; `import_hf` and `export_hf` are
the two directions; `families` lists what can be converted; `settings`, `weights` and `decoder` hold the pure functions
and tables between both sides; `hub` holds the files that travel with an exported model.
"""
