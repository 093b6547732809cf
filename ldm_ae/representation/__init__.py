"""What latents represent: the tightness of the bound, information, disentanglement and usefulness.

Each method is a function in one file. The functions take arrays or an autoencoder and tensors; the metrics of
`ldm_ae.evaluation.metrics` and the scripts are built on them.
"""
