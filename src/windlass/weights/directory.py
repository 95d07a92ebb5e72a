"""A model directory: which dialect it speaks and what its configuration says. Weights are opened separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from windlass.errors import LoadError
from windlass.json_files import json_type, read_json_object
from windlass.quantization import get_scheme
from windlass.weights.mlc import open_mlc
from windlass.weights.safetensors import open_safetensors
from windlass.weights.source import WeightSource

if TYPE_CHECKING:
    from windlass.weights.quantized import Grouping

HF_CONFIG_NAME = "config.json"
MLC_CONFIG_NAME = "mlc-chat-config.json"


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory that holds a model.

    ``config`` is the architecture's configuration: ``config.json`` of a Hugging Face directory, ``model_config`` of an
    MLC one, whose whole ``mlc-chat-config.json`` is ``mlc`` (None otherwise). ``scheme`` names the quantization of an
    MLC directory, None for Hugging Face. ``config_path`` is the file they came from.
    """

    path: Path
    dialect: Literal["hf", "mlc"]
    model_type: str
    config: dict[str, Any]
    mlc: dict[str, Any] | None = None
    scheme: str | None = None

    @property
    def config_path(self) -> Path:
        """The file that ``config`` was read from."""
        return self.path / (HF_CONFIG_NAME if self.dialect == "hf" else MLC_CONFIG_NAME)

    def open_weights(self, groupings: Sequence[Grouping] | None = None) -> WeightSource:
        """Open the weights; only headers and tables are read. Close the source after use.

        Args:
            groupings: what the matrices of a quantized Hugging Face directory may be; None when it is not quantized.

        Raises:
            LoadError: there are no weights, or a file breaks a rule of its format.
        """
        try:
            if self.scheme is not None:
                return open_mlc(self.path, get_scheme(self.scheme))
            return open_safetensors(self.path, groupings)
        except OSError as error:
            raise LoadError(self.path, f"cannot be read: {error.strerror}") from error


def open_model_directory(path: str | Path) -> ModelDirectory:
    """Read the configuration of a model directory; one with ``mlc-chat-config.json`` is an MLC directory.

    Raises:
        LoadError: there is no such directory, it holds no configuration, or the configuration is not usable JSON, names
            no architecture, or names a quantization that is not supported.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            reason = "a model is a directory, this is a file" if path.exists() else "there is no such directory"
            raise LoadError(path, reason)
        if (path / MLC_CONFIG_NAME).is_file():
            return _open_mlc_directory(path)
        if (path / HF_CONFIG_NAME).is_file():
            return _open_hf_directory(path)
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from error
    raise LoadError(
        path,
        f"this is not a model directory: it has neither {HF_CONFIG_NAME} (Hugging Face) nor {MLC_CONFIG_NAME} (MLC)",
    )


def _open_hf_directory(path: Path) -> ModelDirectory:
    file = path / HF_CONFIG_NAME
    config = read_json_object(file)
    return ModelDirectory(path, "hf", _string(file, config, "model_type"), config)


def _open_mlc_directory(path: Path) -> ModelDirectory:
    file = path / MLC_CONFIG_NAME
    mlc = read_json_object(file)
    config = mlc.get("model_config")
    if not isinstance(config, dict):
        raise LoadError(file, f"model_config must be an object, not {json_type(config)}")
    name = _string(file, mlc, "quantization")
    try:
        get_scheme(name)
    except ValueError as error:
        raise LoadError(file, str(error)) from None
    return ModelDirectory(path, "mlc", _string(file, mlc, "model_type"), config, mlc, name)


def _string(file: Path, config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str):
        raise LoadError(
            file, f"{key} must be a string, not {json_type(value)}" if key in config else f"{key} is missing"
        )
    return value
