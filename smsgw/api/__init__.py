"""The HTTP side: the edge every request passes, the routes behind it, and what they answer."""
