"""Packaging. Everything about the distribution is here; pyproject.toml holds tool settings only."""

from pathlib import Path

from setuptools import find_packages, setup

RL = ["mujoco>=4.0", "gymnasium>=1.0", "imageio[ffmpeg]>=2.34"]
MPI = ["mpi4py>=4.0", "mpich>=4.2; platform_system == 'Linux'"]
NVIDIA = "platform_system == 'Linux' and platform_machine == 'x86_64'"
TEST = ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100", "mpmath>=1.3", *RL]

setup(
    name="mamlnp",
    version="0.1.0",
    description="MAML from scratch on NumPy: gradients of any order from a small autodiff engine",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the mamlnp authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["MAML", "meta-learning", "few-shot learning", "autodiff", "NumPy"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["mamlnp", "mamlnp.*"]),
    package_data={"mamlnp": ["py.typed", "initialisations/*.safetensors", "backend/*.cu"]},
    install_requires=[
        "numpy>=2.1",
        "numba>=0.61",
        "matplotlib>=3.9",
        "pillow>=10.3",
        "tyro>=0.9.2",
        "tqdm>=4.66",
        "safetensors>=0.4.5",
        "filelock>=3.13",
        "pooch>=1.8",
        "threadpoolctl>=3.5",
    ],
    extras_require={
        "cuda": ["cupy-cuda12x>=13.2"],
        "cuda13": ["cupy-cuda13x>=13.6"],
        "rl": RL,
        "mpi": ["mpi4py>=4.0"],
        "docs": ["mkdocs-material>=9.5"],
        "peers": ["torch>=2.3", "jax>=0.4.30", "jaxlib>=0.4.30", "autograd>=1.7"],
        "test": TEST,
        # NVRTC compiles the CUDA sources where there is no device to run them on.
        "dev": [*TEST, *MPI, "ruff>=0.6", "mypy>=1.11", f"nvidia-cuda-nvrtc-cu12>=12.4; {NVIDIA}"],
    },
    entry_points={"console_scripts": ["mamlnp = mamlnp.__main__:main"]},
)
