"""Which optional part of the installation a command needs, said before it starts."""

from __future__ import annotations

from importlib.util import find_spec

from vgg16_xray.errors import MissingExtra

#: One module per distribution of each extra in pyproject.toml; a test holds the two lists together.
MODULES = {
    "train": (
        "torch",
        "safetensors",
        "sklearn",
        "pandas",
        "pyarrow",
        "matplotlib",
        "jinja2",
        "openpyxl",
        "tomli_w",
        "onnx",
    ),
    "ncnn": ("ncnn",),
    "keras": ("h5py",),
    "kaggle": ("kagglehub",),
    "dicom": ("pylibjpeg",),
    "serve": ("fastapi", "uvicorn", "httptools", "uvloop", "python_multipart", "prometheus_client"),
}


def require(extra: str, *, purpose: str) -> None:
    """Refuse, with the exact command that mends it, when an extra is not installed.

    Args:
        extra: A key of :data:`MODULES`.
        purpose: What the extra is wanted for, e.g. ``"vgg16-xray train"``.

    Raises:
        MissingExtra: A module of the extra cannot be found. Nothing is imported to find out.
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtra(
            f"{purpose} needs the extra '{extra}', and {', '.join(missing)} {verb} not installed",
            hint=f'install it with: pip install "kbs-vgg16-xray[{extra}]"',
        )
