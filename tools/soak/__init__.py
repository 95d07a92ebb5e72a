"""The parts of tools/server_soak.py."""
