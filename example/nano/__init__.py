"""The bundled small model: its training data, its training, its export to the format of a published checkpoint."""
