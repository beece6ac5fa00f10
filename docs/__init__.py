"""Documentation: pages, and the tools that fill and build them."""
