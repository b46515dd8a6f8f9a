"""Two models and the same items: asked, counted, and shown on a page."""
