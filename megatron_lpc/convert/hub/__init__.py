"""The two files that travel with an exported model. They import nothing but torch and transformers."""
