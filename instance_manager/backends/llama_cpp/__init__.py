"""What Berth knows of llama.cpp's server: where it is, its flags, the files it loads, the memory it takes."""
