"""Lading: layers, images and containers in a content-addressed store with a relational catalog."""
