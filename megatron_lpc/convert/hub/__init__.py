"""The files that travel with an exported model. They import only torch, safetensors and transformers."""
