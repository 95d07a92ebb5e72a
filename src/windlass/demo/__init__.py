"""The bundled demo model: a very small chat model that works without a download.

It lies beside this file as plain files in the layout of Hugging Face, so it loads like any other model directory.
"""

from pathlib import Path

__all__ = ["model_directory"]


def model_directory() -> Path:
    """Return the directory of the demo model, to be given to the engine as the model.

    Example:
        >>> model_directory().joinpath("config.json").is_file()
        True
    """
    return Path(__file__).resolve().parent / "model"
