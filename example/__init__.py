"""The bundled example: a small trained model (`nano`) and assets to run it with."""
