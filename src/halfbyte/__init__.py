"""halfbyte: fine-tune an open model in half a byte a weight, on the machine you have, and prove that it got better."""

__version__ = "0.1.0"
