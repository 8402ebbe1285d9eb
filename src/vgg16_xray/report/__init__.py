"""Numbers into pictures into one self-contained page."""
