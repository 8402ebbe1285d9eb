"""The six steps of the mission, a file each, in the order in which data meets them."""
