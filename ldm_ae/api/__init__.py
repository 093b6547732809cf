"""The functions of `import ldm_ae`."""
