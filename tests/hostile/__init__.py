"""Images that want to be more than they say, and odd ones that are good."""
