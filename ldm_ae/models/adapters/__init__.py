"""The classes of networks behind the interface, one a file."""
