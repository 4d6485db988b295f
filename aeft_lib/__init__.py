"""A reproducible companion to AEFT (ECCV 2022): gated pyramid pooling and erasing as a triplet, from tags to masks."""

__version__ = "0.1.0"
