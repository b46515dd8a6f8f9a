"""The image encoder, the text encoder and the fusion head, each exported as one TorchScript file."""
