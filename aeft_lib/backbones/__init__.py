"""Backbones: image -> features.  Each has ``trunk`` (frozen, cacheable), ``tail`` (trained), ``out_channels``, ``stride``."""
