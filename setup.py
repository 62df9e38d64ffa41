"""Installs `megatron_lpc` and, from `kernels/`, `lpc_kernels`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="megatron-lpc",
    version="0.1.0",
    description="Latent Preference Coding for large language models on Megatron-core",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["megatron_lpc", "megatron_lpc.*"]), "lpc_kernels"],
    package_dir={"lpc_kernels": "kernels/lpc_kernels"},
    package_data={"megatron_lpc": ["py.typed"], "lpc_kernels": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "megatron-core>=0.16.1,<0.17",
        "transformers>=5",
        "datasets>=4",
        "sentencepiece",
        "protobuf",
        "safetensors",
        "pyyaml",
        "rich",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "te": ["transformer-engine[pytorch]"],
        "wandb": ["wandb"],
        # Triton runs and compiles the kernels without a GPU too, and PyTorch for CPU comes without it.
        # 3.6 and 3.7 are those of torch 2.11 and 2.13; later ones compile other code than the table in kernels/README.md.
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "lm-eval",
            "trl",
            "ruff",
            "mypy",
            "pre-commit",
            "types-PyYAML",
            "triton>=3.6,<3.8; platform_system == 'Linux'",
        ],
    },
)
