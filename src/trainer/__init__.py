"""Training and inference loops. Everything else in `src` may be used here; nothing there knows this package."""
