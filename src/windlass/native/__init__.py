"""The native executor and what it tells about the machine."""

from windlass.native.cpu import CpuInfo, cpu_info
from windlass.native.executor import NativeExecutor, PackFile, kv_bytes_per_page

__all__ = ["CpuInfo", "NativeExecutor", "PackFile", "cpu_info", "kv_bytes_per_page"]
