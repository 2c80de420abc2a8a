"""GGUF files, llama.cpp's format: their names, their headers, and the models that they make up."""
