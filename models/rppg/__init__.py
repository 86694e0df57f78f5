"""Heart rate from face video: an 8-frame convolutional network on UBFC-rPPG style recordings."""
