"""The classes of video that the tests without `slow` cover."""

FAST_VIDEO = ("AutoencoderKLLTXVideo", "AutoencoderKLMagvit", "AutoencoderKLQwenImage", "AutoencoderKLWan")
"""One of each kind; the other classes take as long together as all other tests of networks."""
