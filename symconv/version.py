"""The version, in a module without imports: the build reads it."""

__version__ = "0.1.0"
