"""Is the number real?"""
