"""The two files that travel with an exported model. They import only torch and transformers."""
