"""The latent store on disk: format, writer, reader and verification."""
