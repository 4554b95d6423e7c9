"""A model of the whole host against a control plane, an operator and a disk that may do anything (see ``model``)."""
