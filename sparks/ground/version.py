"""The version, in one place; the build and the snapshots read it from here."""

__version__ = "0.1.0"
