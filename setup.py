"""Installs `megatron_lpc` and, from `kernels/`, `lpc_kernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """`__version__` of the package, read without importing it."""
    text = (ROOT / "megatron_lpc" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('megatron_lpc/__init__.py: has no line __version__ = "..."')
    return found[1]


setup(
    name="megatron-lpc",
    version=version(),
    description="Latent Preference Coding for large language models on Megatron-core",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["alignment", "dpo", "preference optimization", "megatron", "latent preference coding"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["megatron_lpc", "megatron_lpc.*"]),
        *find_packages(where="kernels", include=["lpc_kernels", "lpc_kernels.*"]),
    ],
    package_dir={"lpc_kernels": "kernels/lpc_kernels"},
    package_data={
        "megatron_lpc": ["py.typed"],
        "megatron_lpc.evaluation.report": ["page.html", "page.css"],
        "lpc_kernels": ["py.typed"],
    },
    entry_points={
        "console_scripts": [
            "megatron-lpc-launch = megatron_lpc.launch:main",
            "megatron-lpc-train = megatron_lpc.train:main",
            "megatron-lpc-evaluate = megatron_lpc.evaluate:main",
            "megatron-lpc-generate = megatron_lpc.generate:main",
            "megatron-lpc-personalize = megatron_lpc.personalize:main",
            "megatron-lpc-plan = megatron_lpc.plan.__main__:main",
            "megatron-lpc-evaluation-report = megatron_lpc.evaluation.report.__main__:main",
            "megatron-lpc-generation-examples = megatron_lpc.generation.examples:main",
            "megatron-lpc-study = megatron_lpc.study.__main__:main",
            "megatron-lpc-study-one-run = megatron_lpc.study.one_run:main",
            "megatron-lpc-precompute-reference = megatron_lpc.precompute_reference:main",
            "megatron-lpc-data-preview = megatron_lpc.data.preview:main",
            "megatron-lpc-preprocess-data = megatron_lpc.preprocess_data:main",
            "megatron-lpc-convert = megatron_lpc.convert.program:main",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "megatron-core>=0.16.1,<0.17",
        "numpy",
        "transformers>=5",
        "datasets>=4",
        "sentencepiece",
        "filelock",
        "protobuf",
        "packaging",
        "xxhash",
        "safetensors",
        "pyyaml",
        "rich",
        "tensorboard",
        "matplotlib",
        "jinja2",
    ],
    extras_require={
        # The versions that megatron-core 0.16 names.
        "te": ["transformer-engine[pytorch]>=2.9,<2.12"],
        "wandb": ["wandb"],
        # Times of the kernels of each GPU in --log-straggler-interval. Wheels for Linux only.
        "resiliency": ["nvidia-resiliency-ext>=0.4,<0.5; platform_system == 'Linux'"],
        # The map of prompts in a report by t-SNE; without it by PCA.
        "report": ["scikit-learn"],
        "bench": ["trl", "peft"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        # Triton runs and compiles the kernels without a GPU too, and PyTorch for CPU comes without it.
        # 3.6 and 3.7 are those of torch 2.11 and 2.13; later ones compile other code than kernels/README.md tells.
        "test": [
            "gguf",
            "kubeflow-trainer-api",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "lm-eval",
            "nbclient",
            "ipykernel",
            "trl",
            "ruff",
            "mypy",
            "codespell",
            "pre-commit",
            "setuptools",
            "types-PyYAML",
            "triton>=3.6,<3.8; platform_system == 'Linux'",
        ],
    },
)
