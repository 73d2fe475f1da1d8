"""Publish container images into CernVM-FS and run batch jobs from them."""

__version__ = "0.1.0"
__all__ = ["__version__"]
