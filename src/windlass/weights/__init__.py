"""Bytes on disk to named tensors: model directories, safetensors and MLC files, downloads, random weights."""

from windlass.weights.directory import ModelDirectory, open_model_directory
from windlass.weights.dummy import dummy_weights
from windlass.weights.file_cache import FileCache
from windlass.weights.hub import resolve_model
from windlass.weights.loader import Progress, WeightSpec, check_weights, count_parameters, load_weights
from windlass.weights.mlc import MlcWriter, open_mlc
from windlass.weights.safetensors import open_safetensors
from windlass.weights.source import StoredTensor, WeightSource

__all__ = [
    "FileCache",
    "MlcWriter",
    "ModelDirectory",
    "Progress",
    "StoredTensor",
    "WeightSource",
    "WeightSpec",
    "check_weights",
    "count_parameters",
    "dummy_weights",
    "load_weights",
    "open_mlc",
    "open_model_directory",
    "open_safetensors",
    "resolve_model",
]
