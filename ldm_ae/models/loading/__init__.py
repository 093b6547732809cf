"""Finding and opening autoencoders: folders, single files of weights, the Hub."""
