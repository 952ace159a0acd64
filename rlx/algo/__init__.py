"""Floor 6: the algorithms, one file each, and the mathematics that they share."""
