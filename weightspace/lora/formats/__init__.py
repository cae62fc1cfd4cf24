"""Names of tensors in adapter files: kohya's and LyCORIS's flattened names, and diffusers' dotted ones."""
