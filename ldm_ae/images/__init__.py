"""Images: decoding, colours, sizes and crops, as `pixel_values`."""
