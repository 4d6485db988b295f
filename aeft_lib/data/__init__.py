"""Images with tags, and with masks that only evaluation reads."""
