"""Places that a report keeps for what is found after the hand-off. Invisible to a reader; escaped
text cannot hold them."""

__all__ = ["BANNER", "LINK", "SECTION"]

BANNER, LINK, SECTION = (f"<!-- device: {what} -->" for what in ("banner", "link", "section"))
