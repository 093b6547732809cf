"""Power-function averages of weights: stored during training, combined afterwards to an average of any length."""
