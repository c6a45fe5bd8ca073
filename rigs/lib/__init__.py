"""The rigs: our static binaries on three real KVMs (../README.md)."""
